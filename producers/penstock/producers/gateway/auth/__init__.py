"""Callers of the gateway: API keys, JWTs, scopes, rates."""
