"""Workflows that the dispatcher advances."""
