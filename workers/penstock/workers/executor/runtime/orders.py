"""Orders: what operators tell a worker while it runs, by controls in the ledger and by remote control."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from penstock.ledger.members.controls import Control, Controls
from penstock.ledger.members.heartbeats import Consumed
from penstock.schemas.wire.codec import Message
from penstock.workers.brokers.consumer import Consumer
from penstock.workers.executor.runtime.capacity import Capacity


class Orders:
    """The orders of one worker. `follow` is called from one thread at a time, the rest from any.

    Arguments:
        consumer: what it consumes with; None: only pauses of kinds and of all are followed.
        weights: of queues, as the settings say.

    Attributes:
        in_force: the controls, as of the last heartbeat or look.
        notified: set when there may be new ones.
        listens: whether `notified` is set for all that is new.
    """

    def __init__(self, consumer: Consumer | None = None, weights: Mapping[str, int] | None = None) -> None:
        self.in_force = Controls()
        self.notified = threading.Event()
        self.listens: Callable[[], bool] = lambda: False
        self._consumer, self._weights = consumer, dict(weights or {})
        self._left: frozenset[str] = frozenset()
        self._own: int | None = None

    def may_be_new(self) -> bool:
        """Whether to look for new ones. Asks for those before the next notification only."""
        if self.listens() and not self.in_force.ends and not self.notified.is_set():
            return False
        self.notified.clear()
        return True

    def pause_of(self, message: Message) -> Control | None:
        """The pause that holds a job back; None: it may begin."""
        if not self.in_force.all:
            return None
        return self.in_force.pause_of(message.queue, {message.kind.name, *message.kind.aliases})

    def follow(self, capacity: Capacity) -> None:
        """Fetch from the queues that are not paused, by the weights and with the concurrency in force."""
        if self._consumer is None:
            return
        controls = self.in_force
        self._consumer.obey(controls.paused_queues, {**self._weights, **controls.weights})
        slots = max((n for queue, n in controls.concurrency.items() if queue in self._consumer.queues), default=None)
        if slots is not None:
            self._own = capacity.slots if self._own is None else self._own
            capacity.resize(slots)
        elif self._own is not None:
            capacity.resize(self._own)
            self._own = None

    def rest(self, seconds: float) -> None:
        """See `Consumer.rest`."""
        if self._consumer is not None:
            self._consumer.rest(seconds)

    def consume(self, queue: str) -> None:
        """Consume one more queue."""
        if self._consumer is not None:
            self._consumer.add_queue(queue)
            self._left -= {queue}

    def leave(self, queue: str) -> None:
        """Stop consuming a queue."""
        if self._consumer is not None:
            self._left |= {queue} & self._consumer.queues
            self._consumer.cancel_queue(queue)

    def set_blocked(self, blocked: bool) -> None:
        """Let other workers have all that comes while this one can begin nothing."""
        if self._consumer is not None:
            self._consumer.set_blocked(blocked)

    def consumed(self) -> Consumed | None:
        """The worker's queues by now; None: they are not known here."""
        return None if self._consumer is None else Consumed(frozenset(self._consumer.queues), self._left)
