"""Envelopes for tests, and consumers that wait for an expected number of deliveries."""

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


class Arrivals:
    """Everything that a consumer has got, acknowledged and in order."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.deliveries: list[Delivery] = []

    @property
    def ids(self) -> list[str]:
        return ids(self.deliveries)

    def more(self) -> int:
        """Fetch once, and return how many have come so far."""
        deliveries = self._consumer.fetch(100, 0.1)
        self._consumer.ack(deliveries)
        self.deliveries += deliveries
        return len(self.deliveries)

    def wait_for(self, count: int) -> list[str]:
        """Ids of at least so many; fetches a moment longer, for what should not come."""
        until(lambda: self.more() >= count, f"{count} deliveries")
        for _ in range(3):
            self.more()
        return self.ids


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.envelope.id for delivery in deliveries]
