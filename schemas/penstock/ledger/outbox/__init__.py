"""The way of a job from an outbox into the ledger."""
