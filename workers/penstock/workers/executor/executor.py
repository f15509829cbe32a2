"""The executor: the engine-neutral way of a job through a worker. Decode, check, claim, run, record.

Everything below `submit` happens on one event loop in a thread of its own; the ledger and the broker are spoken to in
batches from two more (`offload`). While one claim is under way the next batch gathers, and likewise for outcomes
(`recorder`), so batches grow with the load and a lone job does not wait.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

from penstock.config.errors import LedgerUnavailable, UndecodableMessage
from penstock.config.settings import Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.queries import dead_letters
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions.claim import Claim, Refusal, Wanted, asks_of_keys, claim, without_cancelled
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers.limits.store import Place
from penstock.schemas.jobs.kind import PRIORITIES, Registry
from penstock.schemas.jobs.kind import registry as default_registry
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Message, decode, is_due
from penstock.workers.brokers import Delivery
from penstock.workers.executor.attempt.large_results import LargeResults
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.attempt.once import Effects
from penstock.workers.executor.attempt.run import Attempt, Stop, expired, quarantined, run_attempt
from penstock.workers.executor.attempt.session import Sessions
from penstock.workers.executor.capacity import Held, Room
from penstock.workers.executor.followups.celery_canvas import Canvas
from penstock.workers.executor.followups.change_publisher import Pushes
from penstock.workers.executor.followups.webhooks import Hooks
from penstock.workers.executor.io_threads import Offload
from penstock.workers.executor.limit_gate import Gate
from penstock.workers.executor.loop_thread import LoopThread, Tasks
from penstock.workers.executor.observers import Observer, Observers
from penstock.workers.executor.recorder import BATCH, Recorder
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import Handlers, Mode
from penstock.workers.handlers.registry import handlers as default_handlers
from penstock.workers.handlers.resources import Resources

log = logging.getLogger("penstock.executor")

_LANE = {priority: number for number, priority in enumerate(PRIORITIES)}
_MOST_THREADS = 10_000
_BEAT_SECONDS = 0.5
_LAST_SECONDS = 15.0
"""How long a drain may take beyond its grace, for what was interrupted to end and be recorded."""


class Executor:
    """Runs deliveries, at most `concurrency` at a time, the higher priorities first.

    Arguments:
        name: the worker's, under which it holds claims.
        concurrency: attempts running at a time, coroutines, threads and children together.
        pushes: tells those who watch a job; None: they look by themselves.
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
        pushes: Pushes | None = None,
        limits: Gate | None = None,
        handlers: Handlers = default_handlers,
        registry: Registry = default_registry,
    ) -> None:
        self.settings, self.database, self.name = settings, database, name
        self.observers = Observers(observers)
        self._handlers, self._registry = handlers, registry
        self._canvas = Canvas(settings, registry)
        self._hooks = Hooks(settings) or None
        self._loop = LoopThread(f"{name} loop")
        self._tasks = Tasks(log)
        self._room = Room(concurrency)
        self._offload = Offload(name, self._room)
        # Threads are made as needed; attempts are bounded by `concurrency`, which may change. One that ignored its
        # timeout keeps its thread, not its slot.
        self._threads = ThreadPoolExecutor(_MOST_THREADS, f"{name} handler")
        self._resources = Resources(settings)
        self._results = LargeResults(settings.max_result_bytes_inline, self._resources, self._threads)
        self._recorder = Recorder(
            database, name, self._offload, self._tasks, self.observers, self._results, pushes, self._settled
        )
        self._pushes = pushes
        self._limits = limits
        self._sessions = Sessions(database, name)
        effects = Effects(database, self._offload, self._tasks, self._loop)
        self._openers: dict[Mode, tuple[Callable[[], Any] | None, Callable[[Context, str], Any]]] = {
            "async": (self._sessions.open_async, effects.open_async),
            "thread": (self._sessions.open, effects.open),
            "child": (None, effects.open_async),  # for this end of the child's pipe
        }
        self._inbox: deque[Delivery] = deque()
        self._awake = False
        self._here: dict[str, Held] = {}  # every job from its check to its settlement
        self._behind: dict[str, list[Delivery]] = {}  # later sendings of jobs that are here
        self._waiting: list[tuple[int, int, Held]] = []
        self._order = itertools.count()
        self._running: dict[str, Attempt] = {}
        self._claiming = self._stopping = self._hurried = False
        self._progress: dict[str, heartbeats.Progress] = {}

    # Called from any thread.

    @property
    def concurrency(self) -> int:
        return self._room.slots

    @property
    def prefetch(self) -> int:
        """How many deliveries it holds at most."""
        return self._room.wanted

    def start(self) -> None:
        """Start the loop. Call `submit` only after this."""
        self._loop.start()
        self._beating = self._loop.call(lambda: self._tasks.spawn(self._beat()))
        if self._limits is not None:
            self._loop.call(self._limits.start)

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Take deliveries over. Each is settled with its consumer when its outcome is recorded."""
        self._room.take(len(deliveries))
        self._inbox.extend(deliveries)
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._receive)

    def wait_for_room(self, timeout_seconds: float) -> int:
        """How many more deliveries it wants, waiting for some."""
        return self._room.wait(timeout_seconds)

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
        self._progress[job_id] = (done, total, note)

    def cancel(self, job_id: str) -> bool:
        """Stop a running job for good. False: it does not run here."""
        attempt = self._running.get(job_id)
        if attempt is None:
            return False
        self._loop.call_soon(self._stop_attempt, attempt, "cancelled")
        return True

    def resize(self, concurrency: int) -> None:
        """Change how many attempts run at a time, at least 1. Over a lower number nothing is stopped."""
        self._room.slots = max(concurrency, 1)
        self._loop.call_soon(self._start_more)
        self._room.give(0)

    def running(self) -> list[Attempt]:
        """The attempts being run."""
        return list(self._running.values())

    def waiting(self) -> list[Message]:
        """What was fetched and has not started."""
        return [held.message for _, _, held in list(self._waiting)]

    @property
    def ready(self) -> bool:
        """Whether it takes jobs: not stopping, and its ledger and the store of its limits are there."""
        limited = self._limits is not None and self._limits.away
        return not self._stopping and not self._offload.ledger_away and not limited

    def drain(self, grace_seconds: float) -> None:
        """Stop: give back what has not started, let the rest finish within the grace, and interrupt what still runs."""
        self._loop.run(self._drain(grace_seconds))
        self._loop.stop()
        self._offload.close()
        # A thread that ignores ctx.cancelled cannot be ended; the process ends without it.
        self._threads.shutdown(wait=False, cancel_futures=True)

    def hurry(self) -> None:
        """End the grace of a drain that is under way or to come. Safe in a signal handler."""
        self._hurried = True

    # The way of a job. On the loop from here on.

    def _receive(self) -> None:
        self._awake = False
        while self._inbox:
            delivery = self._inbox.popleft()
            if (message := self._decode(delivery)) is not None and self._check(delivery, message):
                self._wait(Held(delivery, message))
        self._start_more()

    def _decode(self, delivery: Delivery) -> Message | None:
        try:
            message = decode(delivery.envelope, self._registry)
            if message.embed is not None:
                self._canvas.check(message.embed)
            return message
        except UndecodableMessage as error:
            self._tasks.spawn(self._bury(delivery, error.reason, error.detail))
            return None

    def _check(self, delivery: Delivery, message: Message) -> bool:
        """Whether the job is to be run here and now."""
        if self._handlers.find(message.kind) is None:
            detail = f"no module imported by worker {self.name} has a handler for kind {message.kind.name!r}"
            self._tasks.spawn(self._bury(delivery, "no_handler", detail))
            return False
        if not is_due(message.due_at, datetime.now(UTC)):
            self._tasks.spawn(self._postpone(delivery))
            return False
        held = self._here.get(message.id)
        if held is not None and message.fence > held.message.fence:
            # A later sending, such as a retry that is due while its failure is just being acknowledged: after that.
            self._behind.setdefault(message.id, []).append(delivery)
            return False
        if held is not None:
            if delivery.deliveries > 1:
                # The connection was lost and the broker delivers again what is still here: settle this one with it.
                held.delivery = delivery
                self._room.give(1)
            else:
                self._tasks.spawn(self._drop(delivery))
            return False
        self.observers.received(message)
        return True

    def _wait(self, held: Held) -> None:
        self._here[held.message.id] = held
        heapq.heappush(self._waiting, (_LANE[held.message.priority], next(self._order), held))

    def _start_more(self) -> None:
        """Begin what waits as far as slots are free: at once what needs no claim, the rest when it is claimed."""
        if self._claiming:
            return
        self._claiming = True  # what ends at once asks for more, too
        tracked: list[Held] = []
        try:
            while not tracked and self._waiting and not self._stopping and (slots := self._slots()) > 0:
                for _ in range(min(slots, len(self._waiting), BATCH)):
                    held = heapq.heappop(self._waiting)[2]
                    if _is_tracked(held.message):
                        tracked.append(held)
                    else:
                        self._run(held, _untracked(held, self._max_crashes(held.message)))
        finally:
            self._claiming = bool(tracked)
        if tracked:
            self._tasks.spawn(self._claim_batch(tracked))

    def _slots(self) -> int:
        return self.concurrency - len(self._running)

    async def _claim_batch(self, batch: list[Held]) -> None:
        try:
            await self._claim(batch)
        finally:
            self._claiming = False
        self._start_more()

    async def _claim(self, batch: list[Held], asked_before: bool = False) -> None:
        wanted = [Wanted(held.message, held.delivery.deliveries > 1, self._max_crashes(held.message)) for held in batch]

        def ask() -> list[Claim | Refusal]:
            nonlocal asked_before
            before, asked_before = asked_before, True
            return claim(self.database, wanted, worker=self.name, asked_before=before)

        try:
            answers = await self._offload.ledger(ask)
        except LedgerUnavailable:
            raise
        except Exception as error:
            # Something in one message that the database refuses must not take the whole batch with it.
            if len(batch) > 1:
                for held in batch:
                    await self._claim([held], asked_before)
            else:
                self._here.pop(batch[0].message.id, None)
                await self._bury(batch[0].delivery, "undecodable", f"the ledger refuses it: {error}")
            return
        if asks_of_keys(answers):
            claimed = answers
            answers = await self._offload.ledger(lambda: without_cancelled(self.database, claimed))
        early: list[Delivery] = []
        refused: list[Held] = []
        for held, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Claim):
                if held.message.kind.delivery == "at_most_once":
                    early.append(held.delivery)
            elif answer.reason == "held":
                self._hold(held, answer)
            else:
                log.info("job %s not run: %s", held.message.id, answer.reason)
                self.observers.refused(held.message, answer.reason)
                refused.append(held)
        if early or refused:
            await self._offload.ack([*early, *(held.delivery for held in refused)])
            self._settled(refused)
        for held, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Claim):
                self._run(held, answer)
        if self._pushes is not None and self._pushes.watched:  # as of the last look: a start may be missed
            self._pushes.changed([held.message.id for held in batch])

    def _hold(self, held: Held, refusal: Refusal) -> None:
        """Another live worker may still run it: ask again when that worker's lease has ended."""
        until = refusal.until or datetime.now(UTC)
        seconds = max((until - datetime.now(UTC)).total_seconds(), 0) + 0.1

        def again() -> None:
            self._wait(held)
            self._start_more()

        asyncio.get_running_loop().call_later(seconds, again)

    def _run(self, held: Held, claimed: Claim) -> None:
        message = held.message
        handler = self._handlers.find(message.kind)
        assert handler is not None
        timeout = message.kind.timeout
        deadline = None if timeout is None else claimed.started_at + timeout
        session, once = self._openers[handler.mode] if claimed.tracked else (None, None)
        context = Context.of(message, claimed.attempt, deadline, self, session, once, claimed.fence)
        canvas = None if message.embed is None else self._canvas
        attempt = Attempt(claimed, handler, context, canvas=canvas, hooks=self._hooks)
        self._running[message.id] = attempt
        if claimed.quarantine:
            self._finish(held, quarantined(claimed))
        elif message.expires_at is not None and message.expires_at <= claimed.started_at:
            self._finish(held, expired(claimed))
        elif self._limits is not None and (places := self._limits.places(attempt)):
            attempt.task = self._tasks.spawn(self._limited(held, attempt, self._limits, places))
        else:
            self.observers.started(claimed)
            attempt.task = self._tasks.spawn(self._attempt(held, attempt))

    async def _limited(self, held: Held, attempt: Attempt, limits: Gate, places: tuple[Place, ...]) -> None:
        """Run it if its limits let it in, else give it back."""
        if (outcome := await limits.enter(attempt, places)) is not None:
            self._finish(held, outcome)
        else:
            self.observers.started(attempt.claim)
            await self._attempt(held, attempt)

    async def _attempt(self, held: Held, attempt: Attempt) -> None:
        outcome = await run_attempt(
            attempt, self._resources, self._threads, self._sessions, self._results, lambda: self._stopping
        )
        self._finish(held, outcome)

    def _finish(self, held: Held, outcome: AttemptOutcome) -> None:
        del self._running[held.message.id]
        outcome.progress = self._progress.pop(held.message.id, None)
        if held.message.embed is not None and outcome.state == State.DEAD:
            outcome.outgoing = self._canvas.after_death(held.message)
        if self._hooks is not None and outcome.state != State.SUCCEEDED:
            outcome.outgoing = [*outcome.outgoing, *self._hooks.after(outcome)]
        self._recorder.add(held, outcome)
        self._start_more()

    def _settled(self, done: list[Held]) -> None:
        for held in done:
            if self._here.get(held.message.id) is held:
                del self._here[held.message.id]
                self._behind_are_next(held.message.id)
        if self._limits is not None:
            self._limits.settled([held.message.id for held in done])
        self._room.give(len(done))

    def _behind_are_next(self, job_id: str) -> None:
        if behind := self._behind.pop(job_id, None):
            self._inbox.extend(behind)
            self._loop.call_soon(self._receive)

    # Deliveries that are not run.

    async def _bury(self, delivery: Delivery, reason: str, detail: str) -> None:
        envelope = delivery.envelope
        log.error("message %s on queue %s is a dead letter: %s: %s", envelope.id, envelope.queue, reason, detail)
        await self._offload.ledger(lambda: dead_letters.add(self.database, envelope, delivery.raw, reason, detail))
        await self._drop(delivery)

    async def _postpone(self, delivery: Delivery) -> None:
        """A stock client's ETA: the ledger keeps it, not this worker's memory."""
        try:
            await self._offload.ledger(lambda: due.schedule(self.database, [delivery.envelope]))
        except UndecodableMessage as error:
            await self._bury(delivery, error.reason, error.detail)
        else:
            await self._drop(delivery)

    async def _drop(self, delivery: Delivery) -> None:
        """Acknowledge what needs nothing more. Of two messages of one job the first, which is held, is the one that
        counts."""
        await self._offload.ack([delivery])
        self._room.give(1)

    # Stopping.

    def _stop_attempt(self, attempt: Attempt, stop: Stop) -> None:
        if attempt.stop is None and attempt.task is not None:
            attempt.stop = stop
            attempt.context.cancel()
            attempt.task.cancel()

    async def _drain(self, grace_seconds: float) -> None:
        self._stopping = self._room.closed = True
        self._receive()
        unstarted = [held for _, _, held in self._waiting]
        self._waiting.clear()
        behind = [delivery for deliveries in self._behind.values() for delivery in deliveries]
        self._behind.clear()
        if unstarted or behind:
            self._room.give(len(behind))
            self._settled(unstarted)
            await self._offload.release([*(held.delivery for held in unstarted), *behind])
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace_seconds
        while (self._running or self._claiming) and clock() < deadline and not self._hurried:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for attempt in self.running():
            self._stop_attempt(attempt, "interrupted")
        deadline = clock() + _LAST_SECONDS
        while self._running or self._claiming or self._recorder.busy:
            self._offload.patient = clock() < deadline
            await asyncio.sleep(0.02)
        self._beating.cancel()
        await self._tasks.join()
        if self._limits is not None:
            await self._limits.close()
        for closing in (self._resources.close(), self._sessions.close()):
            try:
                await closing
            except Exception:
                log.exception("a resource failed to close")

    async def _beat(self) -> None:
        """Renew the worker's lease, write progress, and learn which jobs to cancel, until it is cancelled."""
        pause = min(_BEAT_SECONDS, self.settings.lease_seconds / 3)
        written: dict[str, heartbeats.Progress] = {}
        while True:
            latest = {job_id: self._progress[job_id] for job_id in list(self._progress) if job_id in self._running}
            progress = {job_id: one for job_id, one in latest.items() if written.get(job_id) != one}
            beat = partial(
                heartbeats.beat,
                self.database,
                self.name,
                lease=self.settings.lease,
                progress=progress,
                peak_memory_bytes=peak_memory(),
            )
            try:
                for job_id in await self._offload.ledger_once(beat):
                    if attempt := self._running.get(job_id):
                        self._stop_attempt(attempt, "cancelled")
                written = latest
                if self._pushes is not None:
                    self._pushes.changed(list(progress))
            except LedgerUnavailable:
                pass  # whoever needs it for a job reports it
            await asyncio.sleep(pause)

    def _max_crashes(self, message: Message) -> int:
        return message.kind.max_crashes or self.settings.max_crashes


def _is_tracked(message: Message) -> bool:
    """Whether the ledger gives the right to run it. A retry of an untracked kind has a row, so it is claimed."""
    return message.kind.track or message.fence > 0


def _untracked(held: Held, max_crashes: int) -> Claim:
    message, now = held.message, datetime.now(UTC)
    # Without a row only the broker's count tells of crashes, where it counts nothing else (RabbitMQ gives up on the
    # message itself at its delivery limit).
    crashes = 0 if held.delivery.consumer.counts_releases else held.delivery.deliveries - 1
    quarantine = crashes >= max_crashes
    return Claim(message, 0, message.attempt, message.attempt - 1, crashes, now, tracked=False, quarantine=quarantine)
