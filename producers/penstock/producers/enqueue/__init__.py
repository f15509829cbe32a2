"""Enqueueing: options, admission of unique jobs, and the two producers."""
