"""A broker in this process's memory: for the inline engine and for tests. What it holds ends with the process."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Sequence

from penstock.config.errors import BrokerUnavailable, QueueFull
from penstock.schemas.jobs.kind import PRIORITIES, Priority
from penstock.schemas.wire.codec import Envelope


class MemoryBroker:
    """`Sender` into queues with lanes, as on a real broker.

    Attributes:
        sent: every envelope, in the order of sending.
        lanes: by queue and priority, what waits, with the number of its delivery.
        changed: guards `lanes`; notified when they change.
        down: True makes it act like a broker that cannot be reached.
    """

    def __init__(self, *, max_lengths: dict[str, int] | None = None) -> None:
        self.max_lengths = max_lengths or {}
        self.down = False
        self.sent: list[Envelope] = []
        self.changed = threading.Condition()
        self.lanes: dict[tuple[str, Priority], deque[tuple[Envelope, int]]] = defaultdict(deque)

    def send(self, envelopes: Sequence[Envelope]) -> None:
        self.ping()
        with self.changed:
            for queue, count in Counter(envelope.queue for envelope in envelopes).items():
                limit = self.max_lengths.get(queue)
                if limit is not None and self.depths([queue])[queue] + count > limit:
                    raise QueueFull(queue, limit)
            for envelope in envelopes:
                self.sent.append(envelope)
                self.lanes[envelope.queue, envelope.priority].append((envelope, 1))
            self.changed.notify_all()

    def ping(self) -> None:
        if self.down:
            raise BrokerUnavailable("the memory broker is down")

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {queue: sum(len(self.lanes[queue, priority]) for priority in PRIORITIES) for queue in queues}

    def lane_depths(self, queues: Sequence[str]) -> dict[str, dict[str, int]]:
        return {queue: {priority: len(self.lanes[queue, priority]) for priority in PRIORITIES} for queue in queues}

    def close(self) -> None: ...
