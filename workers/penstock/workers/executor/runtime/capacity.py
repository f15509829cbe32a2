"""How many deliveries a worker holds, and how many more it wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Sized
from dataclasses import dataclass

from penstock.schemas.wire.codec import Message
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.executor.runtime.pace import MOST_AHEAD, Pace
from penstock.workers.handlers.registry import Handler

_PATIENCE_SECONDS = 0.02


@dataclass(slots=True)
class InFlight:
    """A decoded delivery, from its admission to its settlement.

    Attributes:
        handler: runs its kind.
        ahead: it was claimed before a slot was free for it.
        slot_at: when it took a slot, by the monotonic clock; 0: it has not.
        ended: its attempt has ended, and its outcome is on its way.
    """

    delivery: Delivery
    message: Message
    handler: Handler
    ahead: bool = False
    slot_at: float = 0.0
    ended: bool = False


class Capacity:
    """Counter of deliveries that were taken over and are not settled. Thread-safe: the intake waits here for the loop.

    Attributes:
        slots: attempts that may run at a time.
        running: those that do. The loop alone changes it.
        closed: True once the worker drains; it never wants deliveries again.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.running: Sized = ()
        self.closed = False
        self.pace = Pace()
        self._pauses: set[str] = set()
        self._in_flight = 0
        self._ended = 0  # of them: outcomes on their way, which take no slot
        self._changed = threading.Condition()

    @property
    def ahead(self) -> int:
        """Jobs that are worth fetching and claiming beyond the slots, by the pace of those that ran."""
        return self.pace.ahead(self.slots, full=len(self.running) >= self.slots)

    @property
    def limit(self) -> int:
        """The most deliveries that it holds now, without those whose outcomes are on their way."""
        return self.slots + self.ahead

    @property
    def in_flight(self) -> int:
        """Deliveries that were taken over and are not settled."""
        return self._in_flight

    def available(self) -> int:
        """How many more are wanted: enough to keep every slot busy and the next ones at hand."""
        if self.closed or self._pauses:
            return 0
        if not (ahead := self.ahead):
            # Each job counts until it is settled: RabbitMQ counts so, and would push more than there are slots for.
            return self.slots - self._in_flight
        return min(self.slots + ahead - self._in_flight + self._ended, self.slots + 2 * MOST_AHEAD - self._in_flight)

    def wait(self, timeout_seconds: float) -> int:
        """`available()`, waiting for some: not for the first free slot but for enough to be worth a fetch."""
        with self._changed:
            # Jobs at hand keep the slots busy meanwhile; without, the first free slot is worth a fetch.
            patience = min(timeout_seconds, _PATIENCE_SECONDS) if self.available() > 0 else timeout_seconds
            self._changed.wait_for(lambda: self.available() >= max(1, self.ahead // 4), patience)
        return self.available()

    def acquire(self, count: int) -> None:
        with self._changed:
            self._in_flight += count

    def end(self, entry: InFlight) -> None:
        """An attempt has left its slot. On the loop."""
        entry.ended = True
        self._ended += 1
        self.pace.ended(time.monotonic() - entry.slot_at)

    def release(self, count: int, *, ended: int = 0) -> None:
        """So many are settled; the attempts of `ended` of them had ended."""
        with self._changed:
            self._in_flight -= count
            self._ended -= ended
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
