"""How much a worker holds, and how much more it wants."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from penstock.schemas.wire.codec import Message
from penstock.workers.brokers import Delivery


@dataclass(slots=True)
class Held:
    """A decoded delivery, from its check to its settlement."""

    delivery: Delivery
    message: Message


class Room:
    """Counts deliveries that were taken over and are not settled. Thread-safe: the intake waits here for the loop.

    Attributes:
        slots: attempts that may run at a time.
        closed: True while nothing more is wanted, whatever is free.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.closed = False
        self._held = 0
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        with self._changed:
            self._held += count

    def give(self, count: int) -> None:
        """Settled; with 0: something else changed."""
        with self._changed:
            self._held -= count
            self._changed.notify_all()

    def free(self) -> int:
        """How many more are wanted: enough to keep every slot busy and the next ones at hand."""
        return 0 if self.closed else self.wanted - self._held

    def wait(self, timeout_seconds: float) -> int:
        """`free()`, waiting for some: not for the first free slot but for enough to make a fetch worth its trip."""
        enough = max(1, self.wanted // 4)
        with self._changed:
            patience = min(timeout_seconds, 0.02) if self.free() > 0 else timeout_seconds
            self._changed.wait_for(lambda: self.free() >= enough, patience)
        return self.free()

    @property
    def wanted(self) -> int:
        """How many it holds at most."""
        # With few slots a job fetched ahead could wait long behind one that runs, while another worker is idle.
        return self.slots if self.slots < 4 else 2 * self.slots
