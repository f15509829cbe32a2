"""The executor: the engine-neutral way of a job through a worker. Admit, claim, run, record, settle.

Everything below `submit` happens on one event loop in a thread of its own; calls to the ledger and the broker run in
batches on two more (`runtime.io_threads`). While one claim is under way the next batch gathers, and likewise for
outcomes (`recorder`), so batches grow with the load and a lone job does not wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from penstock.config import log_fields
from penstock.config.settings import Settings
from penstock.config.supervision import faults, keep_running
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
)
from penstock.workers.executor.attempt.run import AttemptRunner
from penstock.workers.executor.attempt.suspects.parent import Suspects
from penstock.workers.executor.claiming import Claiming
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.heartbeat import Heartbeat
from penstock.workers.executor.limit_gate import LimitGate
from penstock.workers.executor.overdue import Overdue
from penstock.workers.executor.recorder import Recorder
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.meter import Meter
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.executor.runtime.runtime import make_runtime
from penstock.workers.executor.watchdog import Watchdog
from penstock.workers.handlers.registry import Handlers
from penstock.workers.handlers.registry import handlers as default_handlers

log = logging.getLogger("penstock.executor")

_LAST_SECONDS = 7.0
"""How long a drain waits for the ledger beyond its grace, so that interrupted attempts are recorded."""

_REJECT_SECONDS = 5.0
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
        )
        self.observers = runtime.observers
        self._limits, self._tasks, self._webhooks = limits, runtime.tasks, runtime.webhooks
        self._inbox: deque[Delivery] = deque()
        self._awake = self._hurried = False
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, Attempt] = {}
        self._left_behind: set[asyncio.Task[AttemptOutcome]] = set()
        self._admission = Admission(runtime)
        self._claiming = Claiming(runtime, self._admission, self._running, self._run, self._fail, self._settle)
        self._heartbeat = Heartbeat(runtime, self._running, lambda attempt: attempt.request_stop("cancelled"))
        self._overdue = Overdue(self._running, self._leave_behind)
        self._watchdog = Watchdog(runtime, self._running)
        self._attempts = AttemptRunner(runtime, self._heartbeat)
        self._suspects = Suspects(runtime, self._attempts, apart=apart)
        self._recorder = Recorder(runtime, self._attempts.results, self._settle)

    # Called from any thread.

    @property
    def concurrency(self) -> int:
        return self._runtime.capacity.slots

    @property
    def prefetch(self) -> int:
        """The most deliveries it holds."""
        return self._runtime.capacity.limit

    def start(self) -> None:
        """Start the loop. Call `submit` only after this."""
        loop = self._runtime.loop
        loop.start()
        loop.call(self._start_loops)
        self._watchdog.start()

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Take deliveries over. Each is settled with its consumer when its outcome is recorded."""
        self._runtime.capacity.acquire(len(deliveries))
        self._inbox.extend(deliveries)
        if not self._awake:
            self._awake = True
            self._runtime.loop.call_soon(self._receive)

    def wait_for_capacity(self, timeout_seconds: float) -> int:
        """How many more deliveries it wants, waiting for some."""
        return self._runtime.capacity.wait(timeout_seconds)

    def cancel(self, job_id: str) -> bool:
        """Stop a running job for good. False: the job does not run here."""
        attempt = self._running.get(job_id)
        if attempt is None:
            return False
        self._runtime.loop.call_soon(attempt.request_stop, "cancelled")
        return True

    def resize(self, concurrency: int) -> None:
        """Change how many attempts run at a time, at least 1. Over a lower number nothing is stopped."""
        self._runtime.capacity.resize(concurrency)
        if not self._runtime.capacity.closed:  # a drain ends the loop
            self._runtime.loop.call_soon(self._claiming.start_more)

    def running(self) -> list[Attempt]:
        """The attempts being run."""
        return list(self._running.values())

    def waiting(self) -> list[Message]:
        """The jobs that were fetched and have not started."""
        return self._admission.waiting()

    @property
    def in_flight(self) -> int:
        """The deliveries that were taken over and are not settled."""
        return self._runtime.capacity.in_flight

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self.not_ready() is None

    def not_ready(self) -> str | None:
        """Why it takes no jobs now; None: it does."""
        if self._runtime.capacity.closed:
            return STOPPING
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

    def drain(self, grace_seconds: float) -> None:
        """Stop: release what has not started, let the rest finish within the grace, and interrupt what still runs."""
        self._runtime.loop.run(self._drain(grace_seconds))
        self._runtime.close()

    def abandon(self) -> None:
        """Release what still runs, without the loop: a drain hangs, and the process is about to end."""
        attempts = self.running()
        if not attempts:
            return
        names = ", ".join(f"{attempt.claim.message.id} ({attempt.claim.message.kind.name})" for attempt in attempts)
        log.error("%d jobs still run after the grace and are given back: %s", len(attempts), names)
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
        inbox, admit = self._inbox, self._admission.admit
        while inbox:
            delivery = inbox.popleft()
            try:
                admit(delivery)
            except Exception:
                log.exception("message %s cannot be admitted and is given back", delivery.envelope.id)
                self._tasks.spawn(self._reject(delivery))
        self._claiming.start_more()

    async def _reject(self, delivery: Delivery) -> None:
        """Release a delivery that met an internal error, after a while: this worker may be the next to get it."""
        await asyncio.sleep(_REJECT_SECONDS)
        await self._runtime.io.release([delivery])
        self._runtime.capacity.release(1)

    def _run(self, entry: InFlight, claim: Claim) -> None:
        """Begin the attempt of a claimed job."""
        message = entry.message
        self._running[message.id] = attempt = self._attempts.prepare(claim, entry.handler)
        try:
            if claim.quarantine:
                self._finish(entry, quarantined(claim))
            elif message.expires_at is not None and message.expires_at <= claim.started_at:
                self._finish(entry, expired(claim))
            elif self._limits is not None and (slots := self._limits.slots(attempt)):
                self._begin(entry, attempt, self._run_within_limits(attempt, self._limits, slots), Context())
            else:
                # The attempt's own: its handler sees what observers bind, and the next one does not.
                context = Context()
                context.run(self.observers.started, claim)
                self._begin(entry, attempt, self._suspects.run(attempt), context)
        except Exception as error:
            self._finish(entry, internal_error(attempt, error))

    def _fail(self, entry: InFlight, claim: Claim, error: Exception) -> None:
        """End a claimed job that was not started, for an internal error."""
        self._recorder.add(entry, internal_error(ClaimedJob(claim, entry.handler), error))

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
        count = 0
        for entry in entries:
            if (later := self._admission.settle(entry)) is None:
                continue
            count += 1
            if later:
                self._inbox.extend(later)
                self._runtime.loop.call_soon(self._receive)
        if self._limits is not None:
            self._limits.settled([entry.message.id for entry in entries])
        self._runtime.capacity.release(count)

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
        await self._give_back()
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace_seconds
        while (self._running or self._claiming.busy) and clock() < deadline and not self._hurried:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for attempt in self.running():
            attempt.request_stop("interrupted")
        deadline = clock() + _LAST_SECONDS
        while self._running or self._claiming.busy or self._recorder.busy:
            self._runtime.io.patient = clock() < deadline
            await asyncio.sleep(0.02)
        self._watchdog.stop()
        for task in self._loops.values():
            task.cancel()
        await self._tasks.join()
        if self._limits is not None:
            await self._limits.close()
        await self._attempts.close()

    async def _give_back(self) -> None:
        """Release what has not started to other workers."""
        entries, later = self._admission.clear()
        if entries or later:
            self._runtime.capacity.release(len(later))
            self._settle(entries)
            await self._runtime.io.release([*(entry.delivery for entry in entries), *later])
