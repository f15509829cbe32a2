"""Servers of a test's own, and the ones that tests share."""
