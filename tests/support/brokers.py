"""What the broker tests share."""

from __future__ import annotations

from typing import Any

from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers import Consumer, Delivery
from support.polling import until


def envelope(id: str = "1", queue: str = "emails", priority: Priority = "normal", **headers: Any) -> Envelope:
    body = b'[[],{"id":"%b"},null]' % id.encode()
    return Envelope(queue, priority, {"lang": "py", "task": "email.send", "id": id, **headers}, body)


def fetch(consumer: Consumer, count: int, limit: int = 100) -> list[Delivery]:
    """Exactly this many deliveries, as they come."""
    deliveries: list[Delivery] = []

    def have_come() -> bool:
        deliveries.extend(consumer.fetch(min(limit, count - len(deliveries)), 0.5))
        assert len(deliveries) >= count, f"{len(deliveries)} of {count} deliveries came"
        return True

    until(have_come)
    assert len(deliveries) == count
    return deliveries


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.envelope.id for delivery in deliveries]
