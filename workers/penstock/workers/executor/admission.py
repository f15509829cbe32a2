"""Admission: deliveries are decoded and checked, and wait by priority for a slot. Others end here."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from penstock.config.errors import LedgerUnavailable, UndecodableMessage
from penstock.config.settings import Settings
from penstock.ledger.queries.deaths import Death, deaths_of
from penstock.ledger.rows.jobs import ID_TAKEN, id_taken
from penstock.ledger.rows.jobs.later_messages import may_follow
from penstock.ledger.transitions import due
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.due import HoldRequest
from penstock.schemas.jobs.kind import PRIORITIES
from penstock.schemas.wire.codec import HEADER, Message, decode, is_due
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

_BATCH = 200
_AGAIN_SECONDS = 2.0
_REJECT_SECONDS = 5.0
_LANE = {priority: number for number, priority in enumerate(PRIORITIES)}


class Admission:
    """Holds every admitted job until its settlement, and hands out those that wait, the higher priorities first.

    It belongs to the loop, but for `submit` and `take_unstarted`, which are safe from any thread: while a handler
    blocks the loop, the watchdog lets other workers have what waits here.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._handlers, self._registry, self._canvas = runtime.handlers, runtime.registry, runtime.canvas
        self._observers = runtime.observers
        self._inbox: deque[Delivery] = deque()
        self._lock = threading.Lock()  # around changes of the next three; one operation of a dict or deque is atomic
        self._in_flight: dict[str, InFlight] = {}
        self._later: dict[str, list[Delivery]] = {}  # later sendings of jobs that are in flight
        self._waiting: list[tuple[int, int, InFlight]] = []
        self._order = itertools.count()
        self._unknown: list[tuple[Delivery, UndecodableMessage]] = []
        self._holding = False

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Let deliveries be admitted by the next `receive`."""
        self._inbox.extend(deliveries)

    def receive(self) -> None:
        """Admit what was submitted."""
        while self._inbox:
            try:
                delivery = self._inbox.popleft()
            except IndexError:
                return  # the watchdog was first
            try:
                self.admit(delivery)
            except Exception:
                log.exception("message %s cannot be admitted and is given back", delivery.envelope.id)
                self._runtime.tasks.spawn(self._release_later(delivery))

    def admit(self, delivery: Delivery) -> None:
        """Let a job wait for its slot, or settle its delivery: it is not to be run here and now."""
        try:
            message = decode(delivery.envelope, self._registry)
            if message.embed is not None:
                self._canvas.check(message.embed)
            if (handler := self._handlers.find(message.kind)) is None:
                raise self._no_handler(message)
            if handler.missing is not None:
                self._check_missing(message, handler.missing)
        except UndecodableMessage as error:
            self._reject(delivery, error)
            return
        if not is_due(message.due_at, datetime.now(UTC)):
            self._runtime.tasks.spawn(self._postpone(delivery))
            return
        with self._lock:
            if (earlier := self._in_flight.get(message.id)) is not None:
                self._admit_again(delivery, message, earlier)
                return
            self._enqueue(InFlight(delivery, message, handler))
        self._observers.received(message)

    def enqueue(self, entry: InFlight) -> None:
        """Let an admitted job wait for a slot."""
        with self._lock:
            self._enqueue(entry)

    def _enqueue(self, entry: InFlight) -> None:
        self._in_flight[entry.message.id] = entry
        heapq.heappush(self._waiting, (_LANE[entry.message.priority], next(self._order), entry))

    def in_flight(self, job_id: str) -> InFlight | None:
        """The admitted job with this id that is not settled yet."""
        return self._in_flight.get(job_id)

    def __len__(self) -> int:
        """The number of jobs that wait."""
        return len(self._waiting)

    def take(self, most: int, which: Callable[[InFlight], bool] | None = None) -> list[InFlight]:
        """Take out the next jobs that wait, up to the first that is not `which`. They stay in flight until they are
        settled."""
        entries: list[InFlight] = []
        with self._lock:
            waiting = self._waiting
            while waiting and len(entries) < most and (which is None or which(waiting[0][2])):
                entries.append(heapq.heappop(waiting)[2])
        return entries

    def entries(self) -> list[InFlight]:
        """Jobs that wait. Safe from any thread."""
        return [entry for _, _, entry in list(self._waiting)]

    def names(self) -> list[str]:
        """Ids and kinds of the admitted jobs that are not settled yet. Safe from any thread."""
        return [f"{entry.message.id} ({entry.message.kind.name})" for entry in list(self._in_flight.values())]

    def settle(self, entry: InFlight) -> list[Delivery] | None:
        """Forget a settled job. Returns the later sendings of it, which are to be admitted now.

        None: it was settled before.
        """
        job_id = entry.message.id
        if self._in_flight.get(job_id) is not entry:
            return None
        del self._in_flight[job_id]  # by the loop alone: it does not wait
        return self._later.pop(job_id, [])

    def forget(self, entries: Sequence[InFlight]) -> list[Delivery]:
        """Forget jobs that were claimed and not started. Returns what is to be released: their deliveries, and later
        sendings. Safe from any thread."""
        deliveries: list[Delivery] = []
        with self._lock:
            for entry in entries:
                if self._in_flight.get(entry.message.id) is entry:
                    del self._in_flight[entry.message.id]
                    deliveries += [entry.delivery, *self._later.pop(entry.message.id, [])]
        self._runtime.capacity.release(len(deliveries))
        return deliveries

    def take_out(self, which: Callable[[InFlight], bool]) -> list[InFlight]:
        """Take some of those that wait out. They stay in flight until they are settled."""
        with self._lock:
            return self._take_out(which)

    def take_unstarted(self, after_seconds: float | None = None) -> list[Delivery]:
        """Take out and forget what has not started, to be released: what was submitted, the jobs that wait, and the
        later sendings of jobs that run.

        Arguments:
            after_seconds: only what may go on after so long (`Delivery.may_go_on`); None: all.
        """

        def goes(delivery: Delivery) -> bool:
            return after_seconds is None or delivery.may_go_on(after_seconds)

        deliveries = []
        for delivery in filter(goes, list(self._inbox)):
            with suppress(ValueError):  # the loop was first
                self._inbox.remove(delivery)
                deliveries.append(delivery)
        with self._lock:
            for entry in self._take_out(lambda entry: goes(entry.delivery)):
                del self._in_flight[entry.message.id]
                deliveries.append(entry.delivery)
            for job_id in list(self._later):
                deliveries += self._later.pop(job_id, [])
        self._runtime.capacity.release(len(deliveries))
        return deliveries

    def _take_out(self, which: Callable[[InFlight], bool]) -> list[InFlight]:
        entries = [entry for _, _, entry in self._waiting if which(entry)]
        if entries:
            self._waiting = [waiting for waiting in self._waiting if not which(waiting[2])]
            heapq.heapify(self._waiting)
        return entries

    async def bury(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Make a delivery that cannot be run a dead letter."""
        envelope, database = delivery.envelope, self._runtime.database

        def bury() -> list[Death]:
            return deaths_of(database, [bury_message(database, envelope, delivery.raw, reason, detail)])

        for death in await self._runtime.io.ledger(bury):
            self._observers.buried(death)
        await self._drop(delivery)

    async def refuse(self, entry: InFlight, reason: str, detail: str) -> None:
        """Make an admitted job that cannot be claimed a dead letter."""
        later = self.settle(entry) or []
        try:
            await self.bury(entry.delivery, reason, detail)
        finally:
            for delivery in later:
                self.admit(delivery)

    def _no_handler(self, message: Message) -> UndecodableMessage:
        detail = f"no module imported by worker {self._runtime.name} has a handler for kind {message.kind.name!r}"
        return UndecodableMessage("no_handler", detail, newer=True)

    def _check_missing(self, message: Message, missing: Callable[[Any, Settings, str | None], str | None]) -> None:
        try:
            lack = missing(message.job, self._runtime.settings, message.tenant)
        except Exception:
            log.exception("the check of kind %s for what is missing failed; its handler decides", message.kind.name)
            return
        if lack is not None:
            raise UndecodableMessage("not_configured", f"worker {self._runtime.name} has {lack}", newer=True)

    def _reject(self, delivery: Delivery, error: UndecodableMessage) -> None:
        """Hold a delivery back that a newer worker may know, or bury it."""
        if not error.newer or not self._runtime.settings.unknown_kind_grace:
            self._runtime.tasks.spawn(self.bury(delivery, error.reason, error.detail))
            return
        self._unknown.append((delivery, error))
        if not self._holding:
            self._holding = True
            self._runtime.tasks.spawn(self._hold_back())

    async def _hold_back(self) -> None:
        """Hold back what has gathered, a batch in one transaction: a deploy may meet thousands."""
        try:
            while self._unknown:
                batch = self._unknown[:_BATCH]
                del self._unknown[:_BATCH]
                await self._hold_batch(batch)
        finally:
            self._holding = False

    async def _hold_batch(self, batch: list[tuple[Delivery, UndecodableMessage]]) -> None:
        requests: list[HoldRequest] = []
        readable: list[tuple[Delivery, UndecodableMessage]] = []
        for delivery, error in batch:
            try:
                requests.append(_hold_request(delivery, error))
                readable.append((delivery, error))
            except UndecodableMessage:
                await self.bury(delivery, error.reason, error.detail)
        database, name, settings = self._runtime.database, self._runtime.name, self._runtime.settings
        grace, lease = settings.unknown_kind_grace, settings.lease
        hold = partial(due.hold_back, database, requests, worker=name, grace=grace, lease=lease)
        try:
            answers = await self._runtime.io.ledger(hold) if requests else []
        except LedgerUnavailable:
            raise
        except Exception as refusal:
            # Something in one message that the database refuses must not take the whole batch with it.
            for delivery, error in readable:
                if len(readable) > 1:
                    await self._hold_batch([(delivery, error)])
                else:
                    await self.bury(delivery, error.reason, f"{error.detail}; and the ledger refuses it: {refusal}")
            return
        settled: list[Delivery] = []
        held: Counter[str] = Counter()
        for (delivery, error), answer in zip(readable, answers, strict=True):
            if answer == "over":
                await self.bury(delivery, error.reason, error.detail)
            elif answer == ID_TAKEN:
                await self.bury(delivery, ID_TAKEN, id_taken(delivery.envelope.id))
            elif answer == "running":
                asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self.admit, delivery)
            else:
                settled.append(delivery)
                held[str(error)] += answer == "held"
        for reason, count in held.items():
            if count:
                log.warning("jobs are held back for workers that know them, up to %s: %d: %s", grace, count, reason)
        if settled:
            await self._runtime.io.ack(settled)
            self._runtime.capacity.release(len(settled))

    def _admit_again(self, delivery: Delivery, message: Message, earlier: InFlight) -> None:
        first = earlier.message
        is_other = message.kind is not first.kind or (message.tenant, message.queue) != (first.tenant, first.queue)
        if message.fence > first.fence or is_other or may_follow(message, first.sent_at):
            # A later sending, such as a retry that is due while its failure is just being acknowledged: after that.
            # Likewise another job with the same id: the ledger knows which of the two has it.
            self._later.setdefault(message.id, []).append(delivery)
        elif delivery.deliveries > 1:
            # The connection was lost and the broker delivers again what is in flight: settle this delivery with it.
            earlier.delivery = delivery
            self._runtime.capacity.release(1)
        else:
            self._runtime.tasks.spawn(self._drop(delivery))

    async def _release_later(self, delivery: Delivery) -> None:
        """Release a delivery that met an internal error, after a while: this worker may be the next to get it."""
        await asyncio.sleep(_REJECT_SECONDS)
        await self._runtime.io.release([delivery])
        self._runtime.capacity.release(1)

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


def _hold_request(delivery: Delivery, error: UndecodableMessage) -> HoldRequest:
    """Raises UndecodableMessage: the ledger cannot keep it."""
    ours = delivery.envelope.headers.get(HEADER)
    fence = ours.get("fence", 0) if isinstance(ours, dict) else 0
    if not isinstance(fence, int):
        raise UndecodableMessage("undecodable", f"{HEADER}.fence must be an integer, not {fence!r}")
    row = due.waiting(delivery.envelope)
    return HoldRequest(row, fence, delivery.deliveries > 1, error.reason, error.detail)
