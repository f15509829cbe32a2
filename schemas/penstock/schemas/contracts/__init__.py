"""Contracts of kinds: export, check for breaking changes, catalog, AsyncAPI."""
