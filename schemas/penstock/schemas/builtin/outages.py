"""How long the built-in workers try again while a database, a storage or an API is down."""

from __future__ import annotations

from datetime import timedelta

from penstock.schemas.jobs.retry_policy import RetryPolicy

OUTAGE = RetryPolicy(max_attempts=1000, max_delay=timedelta(minutes=30), max_age=timedelta(days=3))
"""For three days: an outage says nothing about the job, and 1000 attempts are more than fit into them."""
