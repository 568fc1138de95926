"""The database of the self-hosted backend."""
