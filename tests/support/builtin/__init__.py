"""Servers and jobs for the tests of the built-in workers."""
