"""The gate between a claim and its run: it asks the limit store to admit jobs, and renews their slots."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from penstock.config.errors import BrokerUnavailable
from penstock.config.settings import Settings
from penstock.config.supervision import keep_running
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers.limits import open_store
from penstock.producers.limits.rules import Rule, Rules
from penstock.producers.limits.store import LimitStore, Slot, SlotGrant, SlotRefusal, SlotRequest
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.schemas.states import Outcome, State
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.outcome import stopped
from penstock.workers.executor.runtime.loop_thread import Tasks
from penstock.workers.executor.runtime.orders import Orders
from penstock.workers.handlers.registry import Handler

T = TypeVar("T")
log = logging.getLogger("penstock.executor")

_BATCH = 200
_LOOK_SECONDS = 0.25
"""Pause between two looks at the controls that came with a heartbeat."""
_LONGEST_WAIT = timedelta(hours=1)
"""A job that waits is tried after this at the latest. It is woken long before, unless something went wrong."""


class LimitGate:
    """Runs on the executor's loop. Calls to the store gather while one is under way, in a thread of their own.

    Arguments:
        served: the rules of the kinds that the worker runs, published for services that have no kinds.
        orders: the numbers that operators have set, over those of the rules.

    Attributes:
        unavailable: whether the last call could not reach the store. No job is let in then.
    """

    def __init__(
        self, store: LimitStore, rules: Rules, served: Sequence[Rule], lease: timedelta, orders: Orders
    ) -> None:
        self.unavailable = False
        self._store, self._rules, self._served, self._orders = store, rules, served, orders
        self._pause = lease.total_seconds() / 4
        self._tasks = Tasks(log)
        self._thread = ThreadPoolExecutor(1, "penstock limits")
        self._asking: list[tuple[SlotRequest, asyncio.Future[SlotGrant | SlotRefusal]]] = []
        self._running: dict[str, SlotRequest] = {}
        self._held_back: dict[str, str] = {}  # and not on record yet
        self._left: list[SlotRequest] = []
        self._waiting: set[str] = set()
        self._busy = False
        self._renewing: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._renewing = self._tasks.spawn(keep_running("limits", self._renew))

    def slots(self, attempt: Attempt) -> tuple[Slot, ...]:
        """The slots that the job needs; mostly none."""
        message, changes = attempt.claim.message, self._changes
        slots = ((rule, rule.slot(message)) for rule in self._rules.of(message.kind, message.queue))
        if not changes:
            return tuple(slots)
        return tuple((rule.admitting(changes.get(slot) or changes.get(rule.name)), slot) for rule, slot in slots)

    async def acquire(self, attempt: Attempt, slots: tuple[Slot, ...]) -> AttemptOutcome | None:
        """Wait until the job may run, for milliseconds. Returns None, or the outcome of a job that may not run."""
        entry = SlotRequest(attempt.claim.message.id, attempt.claim.fence, slots)
        try:
            answer = await self._ask(entry)
            if isinstance(answer, SlotRefusal):
                self._held_back[entry.job_id] = answer.slot
                return held_back(attempt, answer.slot)
            await asyncio.sleep(answer.wait_seconds)
        except asyncio.CancelledError:
            return stopped(attempt)
        return None

    def settled(self, job_ids: Iterable[str]) -> None:
        """Release the slots of these jobs: their outcomes are on record, or given up."""
        for job_id in job_ids:
            if (entry := self._running.pop(job_id, None)) is not None:
                self._left.append(entry)
            elif (slot := self._held_back.pop(job_id, None)) is not None:
                self._waiting.add(slot)
        self._call_store()

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        await self._tasks.join()
        with contextlib.suppress(Exception):  # no job runs here any more
            await self._in_thread(partial(self._store.renew, self._served, self._running.values(), self._changes))
        self._thread.shutdown()
        self._store.close()

    async def _ask(self, entry: SlotRequest) -> SlotGrant | SlotRefusal:
        if self.unavailable:  # each job would wait for the timeout, in a slot that others could use
            return SlotRefusal(entry.slots[0][1])
        future = asyncio.get_running_loop().create_future()
        self._asking.append((entry, future))
        self._call_store()
        answer: SlotGrant | SlotRefusal = await future
        return answer

    def _call_store(self) -> None:
        if not self._busy and (self._asking or self._left or self._waiting):
            self._busy = True
            self._tasks.spawn(self._empty_queues())

    async def _empty_queues(self) -> None:
        try:
            while self._asking or self._left or self._waiting:
                if self._left or self._waiting:
                    left, self._left = self._left, []
                    waiting, self._waiting = self._waiting, set()
                    # If this fails, the leases end, and the dispatcher finds the waiting jobs in the ledger.
                    with contextlib.suppress(Exception):
                        await self._in_thread(partial(self._store.release, left, sorted(waiting)))
                if self._asking:
                    batch, self._asking = self._asking[:_BATCH], self._asking[_BATCH:]
                    try:
                        await self._enter(batch)
                    except Exception:
                        log.exception("the limits of %d jobs could not be asked", len(batch))
                        for entry, future in batch:
                            if not future.done():
                                future.set_result(SlotRefusal(entry.slots[0][1]))
        finally:
            self._busy = False

    async def _enter(self, batch: list[tuple[SlotRequest, asyncio.Future[SlotGrant | SlotRefusal]]]) -> None:
        answers: Sequence[SlotGrant | SlotRefusal]
        try:
            answers = await self._in_thread(partial(self._store.acquire, [entry for entry, _ in batch]))
        except Exception:
            answers = [SlotRefusal(entry.slots[0][1]) for entry, _ in batch]
        for (entry, future), answer in zip(batch, answers, strict=True):
            if future.cancelled():
                self._left.append(entry)  # its attempt was stopped in the meantime
                continue
            if isinstance(answer, SlotGrant):
                self._running[entry.job_id] = entry
            future.set_result(answer)

    async def _renew(self) -> None:
        """Renew the slots of running jobs, and publish changed numbers at once, until this is cancelled."""
        loop, due_at = asyncio.get_running_loop(), 0.0
        changes = self._changes
        while True:
            if loop.time() >= due_at or changes != self._changes:
                running, changes = list(self._running.values()), self._changes
                with contextlib.suppress(Exception):  # `_in_thread` has logged it
                    await self._in_thread(partial(self._store.renew, self._served, running, changes))
                due_at = loop.time() + (min(self._pause, 1.0) if self.unavailable else self._pause)
            await asyncio.sleep(min(max(due_at - loop.time(), 0.0), _LOOK_SECONDS))

    @property
    def _changes(self) -> Mapping[str, int]:
        """Numbers that operators have set, as of the last heartbeat."""
        return self._orders.in_force.limits

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Call the store. Raises what the call raises; an outage is logged when it begins."""
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except Exception as error:
            if not self.unavailable:
                unexpected = None if isinstance(error, BrokerUnavailable) else error
                log.error(
                    "limits cannot be asked: %s; jobs with limits wait until they can", error, exc_info=unexpected
                )
            self.unavailable = True
            raise
        if self.unavailable:
            log.warning("the store of limits is back")
            self.unavailable = False
        return value


def open_gate(
    settings: Settings,
    worker: str,
    handlers: Iterable[Handler],
    queues: Iterable[str],
    orders: Orders,
    connections: RedisConnections | None,
) -> LimitGate | None:
    """The gate of a worker of these queues; None: no kind that it may run has limits.

    Arguments:
        connections: the worker's to its broker; None: that is not a Redis.
    """
    rules, served = Rules(settings), set(queues)
    reachable = [(handler.kind, queue) for handler in handlers for queue in served | {handler.kind.queue}]
    rules_served = {rule.name: rule for kind, queue in reachable for rule in rules.of(kind, queue)}
    store = open_store(settings, worker, connections) if rules_served else None
    return None if store is None else LimitGate(store, rules, list(rules_served.values()), settings.lease, orders)


def held_back(attempt: Attempt, slot: str) -> AttemptOutcome:
    """The outcome of a job that waits in the ledger for its limit, or for the end of a pause.

    It counts as no attempt; the dispatcher sends the job again.
    """
    now, expires_at = datetime.now(UTC), attempt.claim.message.expires_at
    latest = now + _LONGEST_WAIT
    due_at = latest if expires_at is None else min(latest, expires_at)
    return AttemptOutcome(attempt.claim, Outcome.SNOOZED, State.SCHEDULED, now, due_at=due_at, waits_for=slot)
