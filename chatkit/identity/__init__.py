"""Authentication of callers: signed-in users and visitors."""
