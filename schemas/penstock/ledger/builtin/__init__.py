"""Tables of the built-in workers."""
