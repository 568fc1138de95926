"""How often, and how much at once, callers may do what costs something."""
