"""Sessions issued here, and the chat that they open."""
