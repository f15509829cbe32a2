"""What the broker tests share."""

from __future__ import annotations

import time
from typing import Any

from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers import Consumer, Delivery

PATIENCE_SECONDS = 60.0


def envelope(id: str = "1", queue: str = "emails", priority: Priority = "normal", **headers: Any) -> Envelope:
    body = b'[[],{"id":"%b"},null]' % id.encode()
    return Envelope(queue, priority, {"lang": "py", "task": "email.send", "id": id, **headers}, body)


def fetch(consumer: Consumer, count: int, limit: int = 100) -> list[Delivery]:
    """Exactly this many deliveries, as they come."""
    found: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} deliveries came"
        found += consumer.fetch(min(limit, count - len(found)), 0.5)
    assert len(found) == count
    return found


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.envelope.id for delivery in deliveries]
