"""Claiming: the jobs that wait are claimed in the ledger, as many as there are slots, and then run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.members.controls import Controls
from penstock.ledger.rows import suspect_runs
from penstock.ledger.rows.jobs import ID_TAKEN, id_taken
from penstock.ledger.sql.faults import ABOUT_DATA
from penstock.ledger.transitions.claim import Claim, ClaimRequest, Refusal, asks_of_keys, claim, without_cancelled
from penstock.ledger.transitions.outcome import record
from penstock.schemas.wire.codec import Message
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.executor.admission import Admission
from penstock.workers.executor.attempt.attempt import ClaimedJob
from penstock.workers.executor.attempt.outcome import unstarted
from penstock.workers.executor.recorder import BATCH
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

_STILL_SECONDS = 0.5
"""While all slots are taken and nothing ends for so long, no more is fetched; after thrice that, what waits goes to
other workers."""
_PAUSE = timedelta(seconds=2)
"""Before a claim that failed for no reason of the job's is tried again."""


class Claiming:
    """Claims in batches: while one claim is under way, the next batch gathers. Beyond the free slots it claims what
    will start within a moment, by the worker's pace; if that does not, it goes to other workers.

    Arguments:
        run: begins the attempt of a claimed job. It never raises.
        end_unstarted: ends a claimed job that has not started, for an internal error; None: it goes to another worker.
        settled: called with jobs that were refused and acknowledged.
        apart: those that have crashed will run in processes of their own.

    Attributes:
        busy: True while a claim is under way.
    """

    def __init__(
        self,
        runtime: Runtime,
        admission: Admission,
        run: Callable[[InFlight, Claim], None],
        end_unstarted: Callable[[InFlight, Claim, Exception | None], None],
        settled: Callable[[list[InFlight]], None],
        apart: bool,
    ) -> None:
        self._runtime, self._admission, self._capacity = runtime, admission, runtime.capacity
        self._run, self._end_unstarted, self._settled = run, end_unstarted, settled
        self._most_crashes, self._apart = runtime.settings.max_crashes, apart
        self.busy = False
        self._ready: deque[tuple[InFlight, Claim]] = deque()  # claimed, for the next slots
        self._granted: dict[str, tuple[InFlight, Claim]] = {}  # by id: claimed, and the loop has not turned since
        self._reserved = 0  # slots that a claim under way will take at once
        self._begins = self._watches = False
        self._follows = asyncio.Event()
        self._follows.set()

    def obey(self, controls: Controls) -> None:
        """Begin nothing more of what these pause, and return what was fetched of it."""
        self._runtime.orders.in_force = controls
        self._follows.clear()
        self._runtime.tasks.spawn(self._follow())

    async def _follow(self) -> None:
        try:
            await self._runtime.io.broker(partial(self._runtime.orders.follow, self._capacity))
        finally:
            self._follows.set()
        self.start_more()

    def _put_paused_aside(self) -> None:
        controls = self._runtime.orders.in_force
        if controls.all and (
            paused := self._admission.take_out(lambda entry: entry.message.queue in controls.paused_queues)
        ):
            self._runtime.tasks.spawn(self._give_back_paused(paused))

    async def _give_back_paused(self, paused: list[InFlight]) -> None:
        await self._follows.wait()  # else this worker would fetch them again
        await self._give_back(paused)

    def waiting(self) -> list[Message]:
        """The jobs that were claimed and not started. Safe from any thread."""
        return [entry.message for entry, _ in list(self._ready)]

    def start_more(self) -> None:
        """Begin what waits as far as slots are free: at once what needs no claim, the rest when it is claimed."""
        self._put_paused_aside()
        self._begin_ready()
        if self.busy:
            return
        self.busy = True  # an attempt that ends at once asks for more, too
        of_ledger: list[InFlight] = []
        waiting, capacity = self._admission, self._capacity
        try:
            if waiting and not capacity.closed:
                ahead = capacity.ahead
                beyond = ahead if len(self._ready) <= ahead // 2 else 0  # else so few that they are not worth a claim
                while waiting and len(of_ledger) < BATCH:
                    free = capacity.slots - len(capacity.running) - len(self._ready) - len(of_ledger)
                    most = min(free if free > 0 else free + beyond, BATCH - len(of_ledger))
                    if not (entries := waiting.take(most, None if free > 0 else _may_be_ahead)):
                        break
                    for entry in entries:
                        if _is_tracked(entry.message) or _crashes(entry):
                            entry.ahead = free <= 0
                            self._reserved += not _may_wait(entry)
                            of_ledger.append(entry)
                        else:
                            self._run(entry, _untracked_claim(entry))
        finally:
            self.busy = bool(of_ledger)
        if of_ledger:
            self._runtime.tasks.spawn(self._claim_batch(of_ledger))
        if not self._watches and self._is_full():
            self._watch()

    def _begin_ready(self) -> None:
        """Begin what is claimed, as far as slots are free; when the worker drains, it goes to others."""
        if self._begins:  # an attempt that ends at once comes here from `_run`
            return
        self._begins = True
        ready, capacity = self._ready, self._capacity
        try:
            while ready and not capacity.closed and len(capacity.running) + self._reserved < capacity.slots:
                with suppress(IndexError):  # the watchdog was first
                    entry, granted = ready.popleft()
                    granted.started_at = datetime.now(UTC)
                    self._run(entry, granted)
            while ready and capacity.closed:
                with suppress(IndexError):
                    self._end_unstarted(*ready.popleft(), None)
        finally:
            self._begins = False

    def _watch(self) -> None:
        self._watches = True
        asyncio.get_running_loop().call_later(_STILL_SECONDS, self._look_for_standstill)

    def _look_for_standstill(self) -> None:
        self._watches = False
        if self._standstill() >= _STILL_SECONDS:
            self._runtime.tasks.spawn(self._end_standstill())
        if self._is_full():
            self._watch()

    def _is_full(self) -> bool:
        return len(self._capacity.running) >= self._capacity.slots

    def _standstill(self) -> float:
        """Seconds for which no slot has become free."""
        return self._capacity.pace.still_seconds() if self._is_full() else 0.0

    async def _end_standstill(self) -> None:
        """Where no slot becomes free, have nothing more sent; and when other such workers have done so too, let those
        that have slots have what waits here."""
        seconds = self._standstill()
        if seconds < 3 * _STILL_SECONDS:
            seconds = 0.0
        await self._runtime.io.broker(partial(self._runtime.orders.rest, seconds))
        if not seconds or not self._is_full():
            return
        if ready := self.take_ready(seconds):
            await self._runtime.io.broker(partial(self.release, ready))
        if entries := self._admission.take_out(lambda entry: entry.delivery.may_go_on(seconds)):
            await self._give_back(entries)

    def take_ready(self, after_seconds: float | None = None) -> list[tuple[InFlight, Claim]]:
        """Take out what was claimed and not started, for `release`. Safe from any thread.

        Arguments:
            after_seconds: only what may go on after so long (`Delivery.may_go_on`); None: all.
        """

        def goes(job: tuple[InFlight, Claim]) -> bool:
            return after_seconds is None or job[0].delivery.may_go_on(after_seconds)

        going: list[tuple[InFlight, Claim]] = []
        staying: list[tuple[InFlight, Claim]] = []
        while self._ready:
            with suppress(IndexError):  # the loop was first
                job = self._ready.popleft()
                (going if goes(job) else staying).append(job)
        self._ready.extend(staying)
        for job_id, job in list(self._granted.items()):
            if goes(job) and self._granted.pop(job_id, None) is not None:  # else the loop was first
                going.append(job)
        return going

    def end_ready(self, job_id: str) -> None:
        """Release a job if it was claimed and not started. If it is to be cancelled, that is its end. On the loop."""
        for job in [job for job in self._ready if job[1].message.id == job_id]:
            with suppress(ValueError):  # the watchdog was first
                self._ready.remove(job)
                self._end_unstarted(*job, None)

    def release(self, jobs: list[tuple[InFlight, Claim]]) -> None:
        """Let other workers have these jobs. Blocks for ledger and broker, and needs no loop; safe from any thread."""
        outcomes = [unstarted(ClaimedJob(granted, entry.handler)) for entry, granted in jobs]
        try:
            record(self._runtime.database, outcomes, worker=self._runtime.name)
        except Exception as error:  # then they begin here, when their turn comes
            text = "%d jobs that have not started cannot be given to other workers: %s"
            log.warning(text, len(jobs), error, exc_info=None if isinstance(error, LedgerUnavailable) else error)
            self._ready.extend(jobs)
            self._runtime.loop.call_soon(self.start_more)
            return
        self._runtime.io.release_now(self._admission.forget([entry for entry, _ in jobs]))

    async def _claim_batch(self, batch: list[InFlight]) -> None:
        try:
            await self._claim(batch)
        except Exception as error:
            unavailable = isinstance(error, LedgerUnavailable)  # and the worker drains
            log.error("%d jobs cannot be claimed: %s", len(batch), error, exc_info=None if unavailable else error)
            await self._give_back(batch)
        finally:
            self.busy, self._reserved = False, 0
            self._granted.clear()
        self.start_more()

    async def _give_back(self, batch: list[InFlight]) -> None:
        """Release jobs that were not claimed to other workers."""
        self._settled(batch)
        await self._runtime.io.release([entry.delivery for entry in batch])

    async def _claim(self, batch: list[InFlight], asked_before: bool = False) -> None:
        database, io = self._runtime.database, self._runtime.io
        requests = [
            ClaimRequest(entry.message, entry.delivery.deliveries > 1, self._max_crashes(entry.message), entry.ahead)
            for entry in batch
            if _is_tracked(entry.message)
        ]

        def claim_jobs() -> list[Claim | Refusal]:
            nonlocal asked_before
            before, asked_before = asked_before, True
            name, lease, apart = self._runtime.name, self._runtime.settings.lease, self._apart
            grant = partial(claim, database, requests, worker=name, asked_before=before, lease=lease, apart=apart)
            claims = iter(grant() if requests else [])
            answers = [
                next(claims) if _is_tracked(entry.message) else self._claim_untracked_suspect(entry) for entry in batch
            ]
            for entry, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Claim) and _may_wait(entry):
                    self._granted[entry.message.id] = entry, answer
            return answers

        asked_at, began = time.time_ns(), time.perf_counter()
        try:
            answers = await io.ledger(claim_jobs)
            self._runtime.meter.step("claim", time.perf_counter() - began)
        except LedgerUnavailable:
            raise
        except Exception as error:
            # Something in one message that the database refuses must not take the whole batch with it.
            if len(batch) > 1:
                for entry in batch:
                    await self._claim([entry], asked_before)
            elif isinstance(error, ABOUT_DATA):
                await self._admission.refuse(batch[0], "undecodable", f"the ledger refuses it: {error}")
            else:
                log.exception("job %s cannot be claimed; trying again", batch[0].message.id)
                until = datetime.now(UTC) + _PAUSE
                self._claim_later(batch[0], Refusal(batch[0].message, "held", until))
            return
        try:
            await self._begin(batch, answers, asked_at)
        except LedgerUnavailable:
            raise
        except Exception as error:
            log.exception("%d jobs met an internal error after they were claimed", len(batch))
            for entry, answer in zip(batch, answers, strict=True):
                here = not _may_wait(entry) or self._granted.pop(entry.message.id, None) is not None
                if here and isinstance(answer, Claim):
                    self._end_unstarted(entry, answer, error)
            await self._give_back(
                [entry for entry, answer in zip(batch, answers, strict=True) if not isinstance(answer, Claim)]
            )

    def _claim_untracked_suspect(self, entry: InFlight) -> Claim:
        if entry.delivery.consumer.counts_releases:  # then the broker's own limit ends them
            return _untracked_claim(entry, 1)
        spared = suspect_runs.begin_untracked(self._runtime.database, entry.message.id, entry.delivery.deliveries)
        crashes = max(_crashes(entry) - spared, 1)  # the first did not happen apart
        return _untracked_claim(entry, crashes, quarantine=crashes >= self._max_crashes(entry.message))

    async def _begin(self, batch: list[InFlight], answers: list[Claim | Refusal], asked_at: int) -> None:
        """Settle the jobs that were refused, and run the others."""
        database, io = self._runtime.database, self._runtime.io
        if asks_of_keys(answers):
            claimed = answers
            answers = await io.ledger(lambda: without_cancelled(database, claimed))
        early: list[Delivery] = []
        refused: list[InFlight] = []
        for entry, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Claim):
                if answer.crash is not None or (answer.crashes and not answer.tracked):
                    self._runtime.meter.crashed(entry.message)
                if not _may_wait(entry):
                    early.append(entry.delivery)
                continue
            self._granted.pop(entry.message.id, None)  # its key was cancelled since
            if answer.reason == "held":
                self._claim_later(entry, answer)
            elif answer.reason == ID_TAKEN:
                self._runtime.tasks.spawn(self._refuse_other(entry))
            else:
                log.info("job %s not run: %s", entry.message.id, answer.reason)
                self._runtime.observers.refused(entry.message, answer.reason)
                refused.append(entry)
        if early or refused:
            await io.ack([*early, *(entry.delivery for entry in refused)])
            self._settled(refused)
        for entry, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Claim):
                answer.asked_at = asked_at
                if not _may_wait(entry):
                    self._run(entry, answer)  # its slot is reserved
                elif self._granted.pop(entry.message.id, None) is not None:  # else it goes to another worker
                    self._ready.append((entry, answer))
        self._reserved = 0
        self._begin_ready()
        changes = self._runtime.changes
        if changes is not None and changes.may_have_subscribers:
            changes.publish([entry.message.id for entry in batch])

    async def _refuse_other(self, entry: InFlight) -> None:
        """Bury a message with the id of another job. What came under that id meanwhile is claimed next."""
        self._runtime.observers.refused(entry.message, ID_TAKEN)
        try:
            await self._admission.refuse(entry, ID_TAKEN, id_taken(entry.message.id))
        finally:
            self.start_more()

    def _claim_later(self, entry: InFlight, refusal: Refusal) -> None:
        """Another live worker may still run the job: claim it again when that worker's lease has ended."""
        until = refusal.until or datetime.now(UTC)
        seconds = max((until - datetime.now(UTC)).total_seconds(), 0) + 0.1

        def claim_again() -> None:
            if self._admission.in_flight(entry.message.id) is entry:
                self._admission.enqueue(entry)
                self.start_more()

        asyncio.get_running_loop().call_later(seconds, claim_again)

    def _max_crashes(self, message: Message) -> int:
        return message.kind.max_crashes or self._most_crashes


def _is_tracked(message: Message) -> bool:
    """Whether the ledger gives the right to run it. A retry of an untracked kind has a row, so it is claimed."""
    return message.kind.track or message.fence > 0


def _may_wait(entry: InFlight) -> bool:
    """Whether it may wait for a slot once it is claimed: what must not run twice starts at once."""
    return entry.message.kind.delivery != "at_most_once"


def _may_be_ahead(entry: InFlight) -> bool:
    """Whether it may be claimed before a slot is free: it can go to another worker then, and is not known to crash."""
    return _is_tracked(entry.message) and entry.delivery.deliveries == 1 and _may_wait(entry)


def _crashes(entry: InFlight) -> int:
    """Crashes of an untracked job, which has no row: only the broker's count of deliveries shows them.

    Where that counts releases too, the first that was not settled was most likely released by a worker that stopped,
    or lost with its connection, as hundreds of others: they are not started in as many processes for it.
    """
    return max(entry.delivery.deliveries - (2 if entry.delivery.consumer.counts_releases else 1), 0)


def _untracked_claim(entry: InFlight, crashes: int = 0, *, quarantine: bool = False) -> Claim:
    message, now = entry.message, datetime.now(UTC)
    return Claim(message, 0, message.attempt, message.attempt - 1, crashes, now, tracked=False, quarantine=quarantine)
