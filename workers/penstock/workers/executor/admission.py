"""Admission: deliveries are decoded and checked, and wait by priority for a slot. Others end here."""

from __future__ import annotations

import heapq
import itertools
import logging
from datetime import UTC, datetime

from penstock.config.errors import UndecodableMessage
from penstock.ledger.transitions import due
from penstock.ledger.transitions.bury import bury_message
from penstock.schemas.jobs.kind import PRIORITIES
from penstock.schemas.wire.codec import Message, decode, is_due
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

_LANE = {priority: number for number, priority in enumerate(PRIORITIES)}


class Admission:
    """Holds every admitted job until its settlement, and hands out those that wait, the higher priorities first."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._handlers, self._registry, self._canvas = runtime.handlers, runtime.registry, runtime.canvas
        self._observers = runtime.observers
        self._in_flight: dict[str, InFlight] = {}
        self._later: dict[str, list[Delivery]] = {}  # later sendings of jobs that are in flight
        self._waiting: list[tuple[int, int, InFlight]] = []
        self._order = itertools.count()

    def admit(self, delivery: Delivery) -> None:
        """Let a job wait for its slot, or settle its delivery: it is not to be run here and now."""
        if (message := self._decode(delivery)) is None:
            return
        if (handler := self._handlers.find(message.kind)) is None:
            detail = f"no module imported by worker {self._runtime.name} has a handler for kind {message.kind.name!r}"
            self._runtime.tasks.spawn(self.bury(delivery, "no_handler", detail))
        elif not is_due(message.due_at, datetime.now(UTC)):
            self._runtime.tasks.spawn(self._postpone(delivery))
        elif (earlier := self._in_flight.get(message.id)) is not None:
            self._admit_again(delivery, message, earlier)
        else:
            self._observers.received(message)
            self.enqueue(InFlight(delivery, message, handler))

    def enqueue(self, entry: InFlight) -> None:
        """Let an admitted job wait for a slot."""
        self._in_flight[entry.message.id] = entry
        heapq.heappush(self._waiting, (_LANE[entry.message.priority], next(self._order), entry))

    def __len__(self) -> int:
        """The number of jobs that wait."""
        return len(self._waiting)

    def pop(self) -> InFlight:
        """The next job that waits."""
        return heapq.heappop(self._waiting)[2]

    def waiting(self) -> list[Message]:
        """The jobs that wait. Safe from any thread."""
        return [entry.message for _, _, entry in list(self._waiting)]

    def settle(self, entry: InFlight) -> list[Delivery]:
        """Forget a settled job. Returns the later sendings of it, which are to be admitted now."""
        job_id = entry.message.id
        if self._in_flight.get(job_id) is not entry:
            return []
        del self._in_flight[job_id]
        return self._later.pop(job_id, [])

    def clear(self) -> tuple[list[InFlight], list[Delivery]]:
        """Take out what has not started: the jobs that wait, and the later sendings of jobs that run."""
        entries = [entry for _, _, entry in self._waiting]
        later = [delivery for deliveries in self._later.values() for delivery in deliveries]
        self._waiting.clear()
        self._later.clear()
        return entries, later

    async def bury(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Make a delivery that cannot be run a dead letter."""
        envelope = delivery.envelope
        log.error("message %s on queue %s is a dead letter: %s: %s", envelope.id, envelope.queue, reason, detail)
        database = self._runtime.database
        await self._runtime.io.ledger(lambda: bury_message(database, envelope, delivery.raw, reason, detail))
        await self._drop(delivery)

    async def refuse(self, entry: InFlight, reason: str, detail: str) -> None:
        """Make an admitted job that cannot be claimed a dead letter."""
        self._in_flight.pop(entry.message.id, None)
        await self.bury(entry.delivery, reason, detail)

    def _decode(self, delivery: Delivery) -> Message | None:
        try:
            message = decode(delivery.envelope, self._registry)
            if message.embed is not None:
                self._canvas.check(message.embed)
            return message
        except UndecodableMessage as error:
            self._runtime.tasks.spawn(self.bury(delivery, error.reason, error.detail))
            return None

    def _admit_again(self, delivery: Delivery, message: Message, earlier: InFlight) -> None:
        if message.fence > earlier.message.fence:
            # A later sending, such as a retry that is due while its failure is just being acknowledged: after that.
            self._later.setdefault(message.id, []).append(delivery)
        elif delivery.deliveries > 1:
            # The connection was lost and the broker delivers again what is in flight: settle this delivery with it.
            earlier.delivery = delivery
            self._runtime.capacity.release(1)
        else:
            self._runtime.tasks.spawn(self._drop(delivery))

    async def _postpone(self, delivery: Delivery) -> None:
        """Give a delivery with an ETA to the ledger: a delayed job never waits in a worker's memory."""
        try:
            await self._runtime.io.ledger(lambda: due.schedule(self._runtime.database, [delivery.envelope]))
        except UndecodableMessage as error:
            await self.bury(delivery, error.reason, error.detail)
        else:
            await self._drop(delivery)

    async def _drop(self, delivery: Delivery) -> None:
        """Acknowledge a delivery that needs nothing more, such as the second message of a job in flight."""
        await self._runtime.io.ack([delivery])
        self._runtime.capacity.release(1)
