"""Consuming Redis Streams: deliveries, leases, and their keeper."""
