"""Sending to Redis Streams."""
