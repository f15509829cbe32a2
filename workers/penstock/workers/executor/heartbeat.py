"""The worker's heartbeat: it renews the lease, reads which jobs to cancel and which controls to obey, and writes
progress and rates. Without jobs it is slower, and only looks for orders and controls in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.members import heartbeats
from penstock.ledger.members.controls import Controls
from penstock.ledger.members.heartbeats import Answer, Consumed, Progress
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

_BEAT_SECONDS = 0.5
"""Pause between two beats of a worker with jobs, and between two looks of one without."""
_RATES_SECONDS = 10.0
"""Pause between two writes of what the worker counted."""
_LATE_SECONDS = 10.0
"""A loop that has not turned for so long has stopped, unless the ledger does not answer."""
_State = tuple[int, bool, Consumed | None, tuple[int, ...] | None]


class Heartbeat:
    """Beats until it is cancelled. It is the `ProgressSink` of the running jobs.

    Arguments:
        running: the attempts by the job's id.
        cancel: called with the id of a job of this worker that is to be cancelled.
        obey: called with the controls in force, when they have changed.

    Attributes:
        on_order: called with each new order of a person's (`heartbeats.DRAIN`, `heartbeats.STOP`).
        pool_pids: returns the processes of the worker's pool; None: it has none.
        latest: the latest progress by the job's id, until it is written with the outcome.
    """

    def __init__(
        self,
        runtime: Runtime,
        running: Mapping[str, Attempt],
        cancel: Callable[[str], None],
        obey: Callable[[Controls], None],
    ) -> None:
        self._runtime, self._running, self._cancel, self._obey = runtime, running, cancel, obey
        self.latest: dict[str, Progress] = {}
        self.on_order: Callable[[str], None] = lambda order: None
        self.pool_pids: Callable[[], tuple[int, ...] | None] = lambda: None
        self._order: str | None = None
        self._written: dict[str, Progress] = {}
        self._started: dict[str, datetime] = {}  # of jobs that were claimed ahead
        self._count_at = 0.0
        self._written_state: _State | None = None
        self._idle_due_at = 0.0
        self._turned_at = time.monotonic()

    def take_order(self, order: str | None) -> None:
        """Pass an order on, unless it is not new."""
        if order is not None and order != self._order:
            self._order = order
            self.on_order(order)

    def problem(self) -> str | None:
        """Why it has stopped; None: it beats. Only while the ledger answers."""
        seconds = time.monotonic() - self._turned_at
        return f"the heartbeat stopped {seconds:.0f} s ago" if seconds > _LATE_SECONDS else None

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
        """Keep the progress of a job for the next beat. Safe from any thread."""
        self.latest[job_id] = (done, total, note)

    async def run(self) -> None:
        """Beat regularly, until this is cancelled."""
        settings, orders = self._runtime.settings, self._runtime.orders
        while True:
            self._turned_at = now = time.monotonic()
            state = self._state()
            left = self._idle_due_at - now if state == self._written_state else 0.0
            try:
                if self._runtime.capacity.in_flight or left <= 0:
                    orders.notified.clear()
                    await self._beat(*state)
                    self._written_state, self._idle_due_at = state, now + settings.lease_seconds / 3
                elif orders.may_be_new():
                    look = partial(heartbeats.read_orders, self._runtime.database, self._runtime.name)
                    self._follow(await self._runtime.io.ledger_once(look))
                await self._report()
            except LedgerUnavailable:
                self._written_state = None  # whichever job needs the ledger reports it; all beat when it is back
            left = self._idle_due_at - time.monotonic()
            await asyncio.sleep(min(_BEAT_SECONDS, settings.lease_seconds / 3, max(left, _BEAT_SECONDS / 10)))

    def _state(self) -> _State:
        """Report of the worker about itself."""
        capacity = self._runtime.capacity
        return capacity.slots, capacity.closed, self._runtime.orders.consumed(), self.pool_pids()

    async def _beat(
        self, slots: int, closed: bool, consumed: Consumed | None, pool_pids: tuple[int, ...] | None
    ) -> None:
        beat = partial(
            heartbeats.beat,
            self._runtime.database,
            self._runtime.name,
            lease=self._runtime.settings.lease,
            peak_memory_bytes=peak_memory(),
            concurrency=slots,
            draining=closed,
            consumed=consumed,
            pool_pids=pool_pids,
        )
        self._follow(await self._runtime.io.ledger_once(beat))

    def _follow(self, answer: Answer) -> None:
        if answer.controls != self._runtime.orders.in_force:
            self._obey(answer.controls)
        for job_id in answer.cancelled:
            self._cancel(job_id)
        self.take_order(answer.order)

    async def _report(self) -> None:
        """Write what is new. By itself: a database with a full disk may take a lease and refuse this."""
        latest = {job_id: self.latest[job_id] for job_id in list(self.latest) if job_id in self._running}
        progress = {job_id: value for job_id, value in latest.items() if self._written.get(job_id) != value}
        tallies = self._runtime.rates.changed() if time.monotonic() >= self._count_at else {}
        database, name = self._runtime.database, self._runtime.name
        ahead = {job_id: attempt.claim.started_at for job_id, attempt in self._running.items() if attempt.claim.ahead}
        started = {job_id: at for job_id, at in ahead.items() if self._started.get(job_id) != at}
        report = partial(heartbeats.report, database, name, started=started, progress=progress, tallies=tallies)
        try:
            if started or progress or tallies:
                await self._runtime.io.ledger_once(report)
        except LedgerUnavailable:
            raise
        except Exception:
            # A progress or a number that the database refuses must not keep the others from being written.
            log.exception("progress of %d jobs, and %d rates, are left out", len(progress), len(tallies))
        self._written, self._started = latest, ahead
        self._runtime.rates.wrote(tallies)
        if tallies:  # what a worker does first is written at its next beat, and so is seen soon
            self._count_at = time.monotonic() + _RATES_SECONDS
        if self._runtime.changes is not None and self._runtime.capacity.in_flight:
            self._runtime.changes.publish(list(progress))
