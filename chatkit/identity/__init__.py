"""Who calls: verified users and visitors."""
