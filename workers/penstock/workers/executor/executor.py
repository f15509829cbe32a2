"""The executor: the engine-neutral way of a job through a worker. Admit, claim, run, record, settle.

Everything below `submit` happens on one event loop in a thread of its own; calls to the ledger and the broker run in
batches on two more (`runtime.io_threads`). While one claim is under way the next batch gathers, and likewise for
outcomes (`recorder`), so batches grow with the load and a lone job does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from penstock.config import log_fields
from penstock.config.settings import Settings
from penstock.config.supervision import faults, keep_running
from penstock.ledger.members.controls import Controls
from penstock.ledger.rows.rates.counting import Cell, Tally
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.producers.limits.store import Slot
from penstock.schemas.jobs.kind import Registry
from penstock.schemas.jobs.kind import registry as default_registry
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import Message
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.executor.admission import Admission
from penstock.workers.executor.attempt.attempt import Attempt, ClaimedJob
from penstock.workers.executor.attempt.outcome import (
    expired,
    internal_error,
    job_log,
    outcome_of,
    quarantined,
    stopped,
    unstarted,
)
from penstock.workers.executor.attempt.run import AttemptRunner
from penstock.workers.executor.attempt.suspects.parent import Suspects
from penstock.workers.executor.claiming import Claiming
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.heartbeat import Heartbeat
from penstock.workers.executor.limit_gate import LimitGate, held_back
from penstock.workers.executor.overdue import Overdue
from penstock.workers.executor.recorder import Recorder
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.meter import Meter
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.executor.runtime.orders import Orders
from penstock.workers.executor.runtime.runtime import make_runtime
from penstock.workers.executor.watchdog import Watchdog
from penstock.workers.handlers.registry import Handlers
from penstock.workers.handlers.registry import handlers as default_handlers

log = logging.getLogger("penstock.executor")

_LAST_SECONDS = 7.0
"""How long a drain waits for the ledger beyond its grace, so that interrupted attempts are recorded."""

STOPPING = "stopping"
"""Why a worker that drains is not ready."""


class Executor:
    """Runs deliveries, at most `concurrency` at a time, the higher priorities first.

    Arguments:
        name: the worker's, under which it holds claims.
        concurrency: attempts running at a time, coroutines, threads and children together.
        changes: notifies subscribers of changed jobs; None: they poll.
        apart: jobs that ran when their worker crashed run in processes of their own; False: all run in this one.
        meter: measures the steps.
        orders: what operators tell the worker; None: only pauses of kinds and of all count.
        limits: lets claimed jobs in or holds them back; None: none of its kinds has limits, or they don't hold here.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        name: str,
        concurrency: int,
        observers: Sequence[Observer] = (),
        changes: ChangePublisher | None = None,
        limits: LimitGate | None = None,
        apart: bool = False,
        meter: Meter | None = None,
        orders: Orders | None = None,
        handlers: Handlers = default_handlers,
        registry: Registry = default_registry,
    ) -> None:
        self._runtime = runtime = make_runtime(
            settings,
            database,
            name=name,
            concurrency=concurrency,
            observers=observers,
            changes=changes,
            handlers=handlers,
            registry=registry,
            meter=meter,
            orders=orders,
        )
        self.observers = runtime.observers
        self._limits, self._tasks, self._webhooks = limits, runtime.tasks, runtime.webhooks
        self._awake = self._hurried = False
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, Attempt] = {}
        self._left_behind: set[asyncio.Task[AttemptOutcome]] = set()
        self._admission = Admission(runtime)
        runtime.capacity.running = self._running
        self._claiming = Claiming(runtime, self._admission, self._run, self._end_unstarted, self._settle, apart)
        self._heartbeat = Heartbeat(runtime, self._running, self._cancel, self._claiming.obey)
        self._overdue = Overdue(self._running, self._leave_behind)
        self._watchdog = Watchdog(runtime, self._admission, self._claiming, self._running, self._heartbeat.take_order)
        self.attempts = AttemptRunner(runtime, self._heartbeat)
        self._heartbeat.pool_pids = self.attempts.pool_pids
        self._suspects = Suspects(runtime, self.attempts, apart=apart)
        self._recorder = Recorder(runtime, self.attempts.results, self._settle)

    # Called from any thread.

    @property
    def concurrency(self) -> int:
        return self._runtime.capacity.slots

    @property
    def prefetch(self) -> int:
        """The most deliveries that it holds at its present pace, without those whose outcomes are being recorded."""
        return self._runtime.capacity.limit

    def start(self, pooled: Sequence[str] = ()) -> None:
        """Start the loop, and the pool of processes if these kinds run there. Call `submit` only after this."""
        loop = self._runtime.loop
        loop.start()
        if pooled:
            loop.call(lambda: self.attempts.open_pool(pooled))
        loop.call(self._start_loops)
        self._watchdog.start()

    def obey(self, controls: Controls) -> None:
        """Follow these controls from the start."""
        self._runtime.orders.in_force = controls
        self._runtime.orders.follow(self._runtime.capacity)

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Take deliveries over. Each is settled with its consumer when its outcome is recorded."""
        if self._runtime.changes is not None and not self._runtime.capacity.in_flight:
            self._runtime.changes.look()  # no heartbeat did while there was no job
        self._runtime.capacity.acquire(len(deliveries))
        self._admission.submit(deliveries)
        if not self._awake:
            self._awake = True
            self._runtime.loop.call_soon(self._receive)

    def wait_for_capacity(self, timeout_seconds: float) -> int:
        """How many more deliveries it wants, waiting for some."""
        return self._runtime.capacity.wait(timeout_seconds)

    def on_order(self, obey: Callable[[str], None]) -> None:
        """Set what obeys a person's orders to this worker, `heartbeats.DRAIN` or `STOP`. It must return soon."""
        self._heartbeat.on_order = obey

    def cancel(self, job_id: str) -> bool:
        """Stop a running job for good, or not begin one whose cancelling is on record. False: this worker has not
        claimed it."""
        if job_id not in self._running and all(message.id != job_id for message in self._claiming.waiting()):
            return False
        self._runtime.loop.call_soon(self._cancel, job_id)
        return True

    def resize(self, concurrency: int) -> None:
        """Change how many attempts run at a time, at least 1. Over a lower number nothing is stopped."""
        self._runtime.capacity.resize(concurrency)
        if not self._runtime.capacity.closed:  # a drain ends the loop
            self._runtime.loop.call_soon(self.attempts.adapt)
            self._runtime.loop.call_soon(self._claiming.start_more)

    def running(self) -> list[Attempt]:
        """The attempts being run."""
        return list(self._running.values())

    def waiting(self) -> list[Message]:
        """The jobs that were fetched and have not started. Safe from any thread."""
        return [*self._claiming.waiting(), *(entry.message for entry in self._admission.entries())]

    @property
    def in_flight(self) -> int:
        """The deliveries that were taken over and are not settled."""
        return self._runtime.capacity.in_flight

    def not_ready(self) -> str | None:
        """Why it takes no jobs now; None: it does."""
        if self._runtime.capacity.closed:
            return STOPPING
        if self.attempts.is_opening:
            return "the pool of processes starts"
        if self._runtime.io.ledger_unavailable:
            return "the ledger does not answer"
        if self._limits is not None and self._limits.unavailable:
            return "the store of limits does not answer"
        return "a handler blocks the event loop" if self._watchdog.blocked else None

    def not_live(self) -> str | None:
        """Why it makes no progress; None: it does, or waits for the ledger."""
        if (problem := self._watchdog.problem()) is not None:
            return problem
        if not self._runtime.capacity.closed and (ended := [name for name, task in self._loops.items() if task.done()]):
            return f"a loop has ended: {', '.join(ended)}"
        excused = self._runtime.io.ledger_unavailable or self._watchdog.blocked
        return None if excused else self._heartbeat.problem()

    def not_settling(self) -> str | None:
        """Why it settles nothing with a broker that answers; None: it does."""
        return self._runtime.io.problem()

    def drain(self, grace_seconds: float) -> None:
        """Stop: release what has not started, let the rest finish within the grace, and interrupt what still runs."""
        self._runtime.loop.run(self._drain(grace_seconds))
        self._runtime.close()

    def tallies(self) -> dict[tuple[int, Cell], Tally]:
        """Numbers that it counted and has not written to the ledger. Call it after the drain."""
        return self._runtime.rates.changed()

    def abandon(self) -> None:
        """Release what still runs, without the loop: a drain hangs, and the process is about to end."""
        if names := self._admission.names():  # also of what has ended, if that cannot be recorded
            log.error("%d jobs are not over after the grace; others run them: %s", len(names), ", ".join(names))
        if ready := self._claiming.take_ready():
            self._claiming.release(ready)
        attempts = self.running()
        if not attempts:
            return
        outcomes = [stopped(attempt) for attempt in attempts]
        kept = record(self._runtime.database, outcomes, worker=self._runtime.name)
        for attempt, outcome, keep in zip(attempts, outcomes, kept, strict=True):
            if keep and outcome.state == State.DEAD:  # said here: this process is about to end
                fields = attempt.context.log_fields
                log.error("job %s is a dead letter: %s", attempt.context.job_id, outcome.detail, extra=fields)
        for outcome in outcomes:
            entry = self._admission.in_flight(outcome.claim.message.id)
            if entry is not None and outcome.name == Outcome.INTERRUPTED:
                entry.delivery.consumer.release([entry.delivery])

    def hurry(self) -> None:
        """End the grace of a drain that is under way or to come. Safe in a signal handler."""
        self._hurried = True

    # On the loop from here on.

    def _start_loops(self) -> None:
        loops = (("heartbeat", self._heartbeat.run), ("overdue attempts", self._overdue.run))
        self._loops = {name: self._tasks.spawn(keep_running(name, body)) for name, body in loops}
        if self._limits is not None:
            self._limits.start()

    # The way of a job.

    def _receive(self) -> None:
        """Admit what was submitted, and begin as much as there are slots for."""
        self._awake = False
        self._admission.receive()
        self._claiming.start_more()

    def _run(self, entry: InFlight, claim: Claim) -> None:
        """Begin the attempt of a claimed job."""
        message, capacity = entry.message, self._runtime.capacity
        self._running[message.id] = attempt = self.attempts.prepare(claim, entry.handler)
        entry.slot_at = time.monotonic()
        if len(self._running) >= capacity.slots:
            capacity.pace.filled()
        try:
            if claim.quarantine:
                self._finish(entry, quarantined(claim))
            elif message.expires_at is not None and message.expires_at <= claim.started_at:
                self._finish(entry, expired(claim))
            elif (pause := self._runtime.orders.pause_of(message)) is not None:
                self._finish(entry, held_back(attempt, pause.slot))
            elif self._limits is not None and (slots := self._limits.slots(attempt)):
                self._begin(entry, attempt, self._run_within_limits(attempt, self._limits, slots), Context())
            else:
                # The attempt's own: its handler sees what observers bind, and the next one does not.
                context = Context()
                context.run(self.observers.started, claim)
                self._begin(entry, attempt, self._suspects.run(attempt), context)
        except Exception as error:
            self._finish(entry, internal_error(attempt, error))

    def _cancel(self, job_id: str) -> None:
        if attempt := self._running.get(job_id):
            attempt.request_stop("cancelled")
        else:
            self._claiming.end_ready(job_id)

    def _end_unstarted(self, entry: InFlight, claim: Claim, error: Exception | None) -> None:
        """End a claimed job that was not started, for an internal error; None: it goes to another worker."""
        job = ClaimedJob(claim, entry.handler)
        self._recorder.add(entry, unstarted(job) if error is None else internal_error(job, error))

    def _begin(
        self, entry: InFlight, attempt: Attempt, work: Coroutine[Any, Any, AttemptOutcome], context: Context
    ) -> None:
        context.run(log_fields.bind, attempt.context)
        attempt.task = asyncio.get_running_loop().create_task(work, context=context)
        attempt.task.add_done_callback(partial(self._end, entry, attempt))

    async def _run_within_limits(self, attempt: Attempt, limits: LimitGate, slots: tuple[Slot, ...]) -> AttemptOutcome:
        """Run it if its limits let it in, else give it back."""
        if (outcome := await limits.acquire(attempt, slots)) is not None:
            return outcome
        self.observers.started(attempt.claim)
        return await self._suspects.run(attempt)

    def _end(self, entry: InFlight, attempt: Attempt, task: asyncio.Task[AttemptOutcome]) -> None:
        """Finish an attempt whose task is done, however it came to that."""
        outcome = outcome_of(attempt, task)
        if attempt.left_behind:
            log.warning("job %s: the handler that was left behind has ended", entry.message.id)
        else:
            self._finish(entry, outcome)

    def _finish(self, entry: InFlight, outcome: AttemptOutcome) -> None:
        """Free the slot, and have the outcome recorded with all that follows from it."""
        message = entry.message
        del self._running[message.id]
        self._runtime.capacity.end(entry)
        outcome.progress = self._heartbeat.latest.pop(message.id, None)
        try:
            if message.embed is not None and outcome.state == State.DEAD:
                outcome.outgoing = self._runtime.canvas.after_death(message)
            if self._webhooks is not None and outcome.state != State.SUCCEEDED:
                outcome.outgoing = [*outcome.outgoing, *self._webhooks.after(outcome)]
        except Exception:
            log.exception("job %s: the jobs that follow its end could not be made", message.id)
        self._recorder.add(entry, outcome)
        self._claiming.start_more()

    def _settle(self, entries: list[InFlight]) -> None:
        """Forget jobs that were acknowledged, released or given up, and admit their later sendings."""
        count = ended = 0
        for entry in entries:
            if (later := self._admission.settle(entry)) is None:
                continue
            count += 1
            ended += entry.ended
            if later:
                self._admission.submit(later)
                self._runtime.loop.call_soon(self._receive)
        if self._limits is not None:
            self._limits.settled([entry.message.id for entry in entries])
        self._runtime.capacity.release(count, ended=ended)

    def _leave_behind(self, attempt: Attempt, outcome: AttemptOutcome) -> None:
        """End an attempt without its coroutine, which did not stop when it was asked to."""
        message = attempt.claim.message
        if (entry := self._admission.in_flight(message.id)) is None or attempt.task is None:
            return
        faults["handler left behind"] += 1
        job_log.error(
            "job %s (%s) did not stop when it was asked to; its attempt has ended without its handler, which runs on",
            message.id,
            message.kind.name,
        )
        attempt.left_behind = True
        self._left_behind.add(attempt.task)  # else the loop alone would refer to it, weakly
        attempt.task.add_done_callback(self._left_behind.discard)
        self._finish(entry, outcome)

    # Draining.

    async def _drain(self, grace_seconds: float) -> None:
        self._runtime.capacity.close()
        self._receive()
        await self._runtime.io.release(self._admission.take_unstarted())
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace_seconds
        while (self._running or self._claiming.busy) and clock() < deadline and not self._hurried:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        deadline = clock() + _LAST_SECONDS
        while self._running or self._claiming.busy or self._recorder.busy:
            for attempt in self.running():  # also those whose claim was under way when the grace ended
                attempt.request_stop("interrupted")
            self._runtime.io.patient = clock() < deadline
            await asyncio.sleep(0.02)
        self._watchdog.stop()
        for task in self._loops.values():
            task.cancel()
        await self.attempts.close_pool()
        await self._tasks.join()
        if self._limits is not None:
            await self._limits.close()
        await self.attempts.close()
