"""Deliveries off the in-memory broker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from penstock.producers.senders.memory import MemoryBroker
from penstock.workers.brokers.consumer import Consumer, Delivery
from penstock.workers.brokers.turns import Turns


class MemoryConsumer(Consumer):
    """`Consumer` of a MemoryBroker.

    Attributes:
        unsettled: its deliveries that are neither acknowledged nor released, in order.
    """

    counts_releases = False

    def __init__(self, broker: MemoryBroker, queues: Iterable[str], weights: Mapping[str, int] | None = None) -> None:
        self.queues = set(queues)
        self.unsettled: dict[Delivery, None] = {}
        self._broker = broker
        self.turns = Turns(weights)
        self._woken = False

    def open(self) -> None:
        self._broker.ping()

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout_seconds
        with self._broker.changed:
            while True:
                self._broker.ping()
                if deliveries := self._take(limit):
                    return deliveries
                if self._woken or not self._broker.changed.wait(max(deadline - time.monotonic(), 0)):
                    self._woken = False
                    return []

    def _take(self, limit: int) -> list[Delivery]:
        entries = self.turns.take(self.served, self._broker.lanes, limit)
        deliveries = [Delivery(envelope, envelope.body, count, count, self) for envelope, count in entries]
        self.unsettled.update(dict.fromkeys(deliveries))
        return deliveries

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        with self._broker.changed:
            for delivery in deliveries:
                self.unsettled.pop(delivery, None)
            self._broker.changed.notify_all()

    def release(self, deliveries: Sequence[Delivery]) -> None:
        with self._broker.changed:
            for delivery in reversed(deliveries):
                if delivery in self.unsettled:
                    del self.unsettled[delivery]
                    self._return_to_lane(delivery, delivery.deliveries)
            self._broker.changed.notify_all()

    def die(self) -> None:
        """Hand the deliveries to others, as a broker does when a worker dies."""
        with self._broker.changed:
            for delivery in reversed(self.unsettled):
                self._return_to_lane(delivery, delivery.deliveries + 1)
            self.unsettled.clear()
            self._broker.changed.notify_all()

    def _return_to_lane(self, delivery: Delivery, count: int) -> None:
        envelope = delivery.envelope
        self._broker.lanes[envelope.queue, envelope.priority].appendleft((envelope, count))

    def drain_dead(self, limit: int) -> list[Delivery]:
        return []

    def wake(self) -> None:
        with self._broker.changed:
            self._woken = True
            self._broker.changed.notify_all()

    def close(self) -> None: ...
