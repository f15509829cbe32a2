"""Messages of the built-in workers."""
