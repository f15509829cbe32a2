"""Workflows for tests, and functions that drive them without a dispatcher."""
