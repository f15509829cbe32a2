"""The executor: the engine-neutral way of a job through a worker. Admit, claim, run, record, settle.

Everything below `submit` happens on one event loop in a thread of its own; calls to the ledger and the broker run in
batches on two more (`runtime.io_threads`). While one claim is under way the next batch gathers, and likewise for
outcomes (`recorder`), so batches grow with the load and a lone job does not wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers.limits.store import Slot
from penstock.schemas.jobs.kind import Registry
from penstock.schemas.jobs.kind import registry as default_registry
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Message
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.executor.admission import Admission
from penstock.workers.executor.attempt.attempt import Attempt, Stop
from penstock.workers.executor.attempt.outcome import expired, quarantined
from penstock.workers.executor.attempt.run import AttemptRunner
from penstock.workers.executor.claiming import Claiming
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.heartbeat import Heartbeat
from penstock.workers.executor.limit_gate import LimitGate
from penstock.workers.executor.recorder import Recorder
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.executor.runtime.runtime import make_runtime
from penstock.workers.handlers.registry import Handlers
from penstock.workers.handlers.registry import handlers as default_handlers

log = logging.getLogger("penstock.executor")

_LAST_SECONDS = 15.0
"""How long a drain may take beyond its grace, for interrupted attempts to end and be recorded."""


class Executor:
    """Runs deliveries, at most `concurrency` at a time, the higher priorities first.

    Arguments:
        name: the worker's, under which it holds claims.
        concurrency: attempts running at a time, coroutines, threads and children together.
        changes: notifies subscribers of changed jobs; None: they poll.
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
        )
        self.observers = runtime.observers
        self._limits, self._tasks, self._webhooks = limits, runtime.tasks, runtime.webhooks
        self._inbox: deque[Delivery] = deque()
        self._awake = self._hurried = False
        self._running: dict[str, Attempt] = {}
        self._admission = Admission(runtime)
        self._claiming = Claiming(runtime, self._admission, self._running, self._run, self._settle)
        self._heartbeat = Heartbeat(runtime, self._running, lambda attempt: self._stop(attempt, "cancelled"))
        self._attempts = AttemptRunner(runtime, self._heartbeat)
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
        self._beating = loop.call(lambda: self._tasks.spawn(self._heartbeat.run()))
        if self._limits is not None:
            loop.call(self._limits.start)

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
        self._runtime.loop.call_soon(self._stop, attempt, "cancelled")
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
    def ready(self) -> bool:
        """Whether it takes jobs: not draining, and its ledger and the store of its limits are there."""
        limits_unavailable = self._limits is not None and self._limits.unavailable
        return not self._runtime.capacity.closed and not self._runtime.io.ledger_unavailable and not limits_unavailable

    def drain(self, grace_seconds: float) -> None:
        """Stop: give back what has not started, let the rest finish within the grace, and interrupt what still runs."""
        self._runtime.loop.run(self._drain(grace_seconds))
        self._runtime.close()

    def hurry(self) -> None:
        """End the grace of a drain that is under way or to come. Safe in a signal handler."""
        self._hurried = True

    # The way of a job. On the loop from here on.

    def _receive(self) -> None:
        """Admit what was submitted, and begin as much as there are slots for."""
        self._awake = False
        inbox, admit = self._inbox, self._admission.admit
        while inbox:
            admit(inbox.popleft())
        self._claiming.start_more()

    def _run(self, entry: InFlight, claim: Claim) -> None:
        """Begin the attempt of a claimed job."""
        message = entry.message
        self._running[message.id] = attempt = self._attempts.prepare(claim, entry.handler)
        if claim.quarantine:
            self._finish(entry, quarantined(claim))
        elif message.expires_at is not None and message.expires_at <= claim.started_at:
            self._finish(entry, expired(claim))
        elif self._limits is not None and (slots := self._limits.slots(attempt)):
            attempt.task = self._tasks.spawn(self._run_within_limits(entry, attempt, self._limits, slots))
        else:
            self.observers.started(claim)
            attempt.task = self._tasks.spawn(self._run_attempt(entry, attempt))

    async def _run_within_limits(
        self, entry: InFlight, attempt: Attempt, limits: LimitGate, slots: tuple[Slot, ...]
    ) -> None:
        """Run it if its limits let it in, else give it back."""
        if (outcome := await limits.acquire(attempt, slots)) is not None:
            self._finish(entry, outcome)
        else:
            self.observers.started(attempt.claim)
            await self._run_attempt(entry, attempt)

    async def _run_attempt(self, entry: InFlight, attempt: Attempt) -> None:
        self._finish(entry, await self._attempts.run(attempt))

    def _finish(self, entry: InFlight, outcome: AttemptOutcome) -> None:
        """Free the slot, and have the outcome recorded with all that follows from it."""
        message = entry.message
        del self._running[message.id]
        outcome.progress = self._heartbeat.latest.pop(message.id, None)
        if message.embed is not None and outcome.state == State.DEAD:
            outcome.outgoing = self._runtime.canvas.after_death(message)
        if self._webhooks is not None and outcome.state != State.SUCCEEDED:
            outcome.outgoing = [*outcome.outgoing, *self._webhooks.after(outcome)]
        self._recorder.add(entry, outcome)
        self._claiming.start_more()

    def _settle(self, entries: list[InFlight]) -> None:
        """Forget jobs that were acknowledged, released or given up, and admit their later sendings."""
        for entry in entries:
            if later := self._admission.settle(entry):
                self._inbox.extend(later)
                self._runtime.loop.call_soon(self._receive)
        if self._limits is not None:
            self._limits.settled([entry.message.id for entry in entries])
        self._runtime.capacity.release(len(entries))

    def _stop(self, attempt: Attempt, stop: Stop) -> None:
        if attempt.stop is None and attempt.task is not None:
            attempt.stop = stop
            attempt.context.cancel()
            attempt.task.cancel()

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
            self._stop(attempt, "interrupted")
        deadline = clock() + _LAST_SECONDS
        while self._running or self._claiming.busy or self._recorder.busy:
            self._runtime.io.patient = clock() < deadline
            await asyncio.sleep(0.02)
        self._beating.cancel()
        await self._tasks.join()
        if self._limits is not None:
            await self._limits.close()
        for closing in (self._runtime.resources.close(), self._attempts.close()):
            try:
                await closing
            except Exception:
                log.exception("a resource failed to close")

    async def _give_back(self) -> None:
        """Release what has not started to other workers."""
        entries, later = self._admission.clear()
        if entries or later:
            self._runtime.capacity.release(len(later))
            self._settle(entries)
            await self._runtime.io.release([*(entry.delivery for entry in entries), *later])
