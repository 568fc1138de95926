"""The self-hosted backend."""
