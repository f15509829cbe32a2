"""Commands about the built-in workers."""
