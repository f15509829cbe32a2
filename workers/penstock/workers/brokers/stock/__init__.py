"""Queues of unmodified Celery and Dramatiq clients."""
