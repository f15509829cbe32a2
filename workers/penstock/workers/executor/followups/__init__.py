"""Follow-ups of an outcome: Celery callbacks, webhooks, change notifications."""
