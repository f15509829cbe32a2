"""Flower's own parts, made to fit the ledger."""
