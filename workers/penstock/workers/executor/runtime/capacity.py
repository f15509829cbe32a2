"""How many deliveries a worker holds, and how many more it wants."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from penstock.schemas.wire.codec import Message
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.handlers.registry import Handler


@dataclass(slots=True)
class InFlight:
    """A decoded delivery, from its admission to its settlement.

    Attributes:
        handler: runs its kind.
    """

    delivery: Delivery
    message: Message
    handler: Handler


class Capacity:
    """Counter of deliveries that were taken over and are not settled. Thread-safe: the intake waits here for the loop.

    Attributes:
        slots: attempts that may run at a time.
        closed: True once the worker drains; it never wants deliveries again.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.closed = False
        self._pauses: set[str] = set()
        self._in_flight = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """The most deliveries it holds."""
        # With few slots a job fetched ahead could wait long behind one that runs, while another worker is idle.
        return self.slots if self.slots < 4 else 2 * self.slots

    @property
    def in_flight(self) -> int:
        """Deliveries that were taken over and are not settled."""
        return self._in_flight

    def available(self) -> int:
        """How many more are wanted: enough to keep every slot busy and the next ones at hand."""
        return 0 if self.closed or self._pauses else self.limit - self._in_flight

    def wait(self, timeout_seconds: float) -> int:
        """`available()`, waiting for some: not for the first free slot but for enough to be worth a fetch."""
        enough = max(1, self.limit // 4)
        with self._changed:
            patience = min(timeout_seconds, 0.02) if self.available() > 0 else timeout_seconds
            self._changed.wait_for(lambda: self.available() >= enough, patience)
        return self.available()

    def acquire(self, count: int) -> None:
        with self._changed:
            self._in_flight += count

    def release(self, count: int) -> None:
        with self._changed:
            self._in_flight -= count
            self._changed.notify_all()

    def resize(self, slots: int) -> None:
        """Allow this many attempts at a time, at least 1."""
        with self._changed:
            self.slots = max(slots, 1)
            self._changed.notify_all()

    def pause(self, reason: str) -> None:
        """Want nothing until `resume` with the same reason."""
        with self._changed:
            self._pauses.add(reason)

    def resume(self, reason: str) -> None:
        """End a pause. A closed counter stays closed."""
        with self._changed:
            self._pauses.discard(reason)
            self._changed.notify_all()

    def close(self) -> None:
        """Want nothing any more."""
        self.closed = True
