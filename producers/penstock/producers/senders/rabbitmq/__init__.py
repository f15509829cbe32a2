"""Sending to RabbitMQ quorum queues."""
