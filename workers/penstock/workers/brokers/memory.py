"""Deliveries off the broker in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas.jobs.kind import PRIORITIES
from penstock.workers.brokers import Delivery


class MemoryConsumer:
    """`Consumer` of a MemoryBroker.

    Attributes:
        unsettled: what it handed out and is neither acknowledged nor released, in order.
    """

    counts_releases = False

    def __init__(self, broker: MemoryBroker, queues: Iterable[str]) -> None:
        self.queues = set(queues)
        self.unsettled: dict[Delivery, None] = {}
        self._broker = broker
        self._woken = False

    def open(self) -> None:
        self._broker.ping()

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout_seconds
        with self._broker.changed:
            while True:
                self._broker.ping()
                if found := self._take(limit):
                    return found
                if self._woken or not self._broker.changed.wait(max(deadline - time.monotonic(), 0)):
                    self._woken = False
                    return []

    def _take(self, limit: int) -> list[Delivery]:
        found: list[Delivery] = []
        for priority in PRIORITIES:
            for queue in sorted(self.queues):
                lane = self._broker.lanes[queue, priority]
                while lane and len(found) < limit:
                    envelope, count = lane.popleft()
                    found.append(Delivery(envelope, envelope.body, count, count, self))
        self.unsettled.update(dict.fromkeys(found))
        return found

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
                    self._give_back(delivery, delivery.deliveries)
            self._broker.changed.notify_all()

    def die(self) -> None:
        """What a broker does when a worker dies: hand its deliveries to the others."""
        with self._broker.changed:
            for delivery in reversed(self.unsettled):
                self._give_back(delivery, delivery.deliveries + 1)
            self.unsettled.clear()
            self._broker.changed.notify_all()

    def _give_back(self, delivery: Delivery, count: int) -> None:
        envelope = delivery.envelope
        self._broker.lanes[envelope.queue, envelope.priority].appendleft((envelope, count))

    def drain_dead(self, limit: int) -> list[Delivery]:
        return []

    def add_queue(self, queue: str) -> None:
        self.queues = self.queues | {queue}
        self.wake()

    def cancel_queue(self, queue: str) -> None:
        self.queues = self.queues - {queue}
        self.wake()

    def wake(self) -> None:
        with self._broker.changed:
            self._woken = True
            self._broker.changed.notify_all()

    def close(self) -> None: ...
