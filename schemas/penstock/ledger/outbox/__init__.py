"""Outboxes: their jobs are moved into the ledger and sent."""
