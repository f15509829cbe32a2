"""The wire format: Celery's message protocol 2 with one header of ours, and job ids."""
