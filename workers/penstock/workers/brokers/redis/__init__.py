"""Consuming Redis Streams: deliveries, leases, and the lease keeper."""
