"""Consuming RabbitMQ quorum queues."""
