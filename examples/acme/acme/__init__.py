"""Acme's background jobs."""
