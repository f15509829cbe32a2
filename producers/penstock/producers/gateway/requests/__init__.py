"""Requests: bodies, options, idempotency keys."""
