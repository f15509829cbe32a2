"""The message and the addresses of the servers, for all contestants."""

from __future__ import annotations

import os

from pydantic import BaseModel

REDIS_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")
AMQP_URL = os.environ.get("BENCH_AMQP_URL", "")
ON_RABBITMQ = os.environ.get("BENCH_BROKER") == "rabbitmq"
BROKER_URL = AMQP_URL if ON_RABBITMQ else REDIS_URL
TASK = os.environ.get("BENCH_TASK", "noop")
"""The job that is sent: `noop`, or `sleep`, which waits for `SLEEP_SECONDS`."""
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "0"))
SLEEP_SECONDS = 0.05


class Message(BaseModel):
    """Two typed fields, validated by every contestant's handler."""

    number: int
    text: str
