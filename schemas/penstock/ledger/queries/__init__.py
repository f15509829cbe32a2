"""Queries: reading what is on record."""
