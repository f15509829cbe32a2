"""Routes of the built-in workers."""
