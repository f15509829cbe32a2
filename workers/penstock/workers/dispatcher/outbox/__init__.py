"""Outboxes that the dispatcher relays to the broker."""
