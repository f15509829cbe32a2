"""Claiming: the jobs that wait are claimed in the ledger, as many as there are slots, and then run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.rows import suspect_runs
from penstock.ledger.rows.jobs import ID_TAKEN, id_taken
from penstock.ledger.sql.faults import ABOUT_DATA
from penstock.ledger.transitions.claim import Claim, ClaimRequest, Refusal, asks_of_keys, claim, without_cancelled
from penstock.schemas.wire.codec import Message
from penstock.workers.brokers.consumer import Delivery
from penstock.workers.executor.admission import Admission
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.recorder import BATCH
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

_PAUSE = timedelta(seconds=2)
"""Before a claim that failed for no reason of the job's is tried again."""


class Claiming:
    """Claims in batches: while one claim is under way, the next batch gathers.

    Arguments:
        running: the attempts that take a slot.
        run: begins the attempt of a claimed job. It never raises.
        fail: ends the attempt of a claimed job before it began, for an internal error.
        settled: called with jobs that were refused and acknowledged.

    Attributes:
        busy: True while a claim is under way.
    """

    def __init__(
        self,
        runtime: Runtime,
        admission: Admission,
        running: Mapping[str, Attempt],
        run: Callable[[InFlight, Claim], None],
        fail: Callable[[InFlight, Claim, Exception], None],
        settled: Callable[[list[InFlight]], None],
    ) -> None:
        self._runtime, self._admission, self._capacity = runtime, admission, runtime.capacity
        self._running, self._run, self._fail, self._settled = running, run, fail, settled
        self._most_crashes = runtime.settings.max_crashes
        self.busy = False

    def start_more(self) -> None:
        """Begin what waits as far as slots are free: at once what needs no claim, the rest when it is claimed."""
        if self.busy:
            return
        self.busy = True  # an attempt that ends at once asks for more, too
        of_ledger: list[InFlight] = []
        waiting, capacity = self._admission, self._capacity
        try:
            while (
                not of_ledger and waiting and not capacity.closed and (free := capacity.slots - len(self._running)) > 0
            ):
                for _ in range(min(free, len(waiting), BATCH)):
                    entry = waiting.pop()
                    if _is_tracked(entry.message) or _crashes(entry):
                        of_ledger.append(entry)
                    else:
                        self._run(entry, _untracked_claim(entry))
        finally:
            self.busy = bool(of_ledger)
        if of_ledger:
            self._runtime.tasks.spawn(self._claim_batch(of_ledger))

    async def _claim_batch(self, batch: list[InFlight]) -> None:
        try:
            await self._claim(batch)
        except Exception as error:
            unavailable = isinstance(error, LedgerUnavailable)  # and the worker drains
            log.error("%d jobs cannot be claimed: %s", len(batch), error, exc_info=None if unavailable else error)
            await self._give_back(batch)
        finally:
            self.busy = False
        self.start_more()

    async def _give_back(self, batch: list[InFlight]) -> None:
        """Release jobs that were not claimed to other workers."""
        self._settled(batch)
        await self._runtime.io.release([entry.delivery for entry in batch])

    async def _claim(self, batch: list[InFlight], asked_before: bool = False) -> None:
        database, io = self._runtime.database, self._runtime.io
        requests = [
            ClaimRequest(entry.message, entry.delivery.deliveries > 1, self._max_crashes(entry.message))
            for entry in batch
            if _is_tracked(entry.message)
        ]

        def claim_jobs() -> list[Claim | Refusal]:
            nonlocal asked_before
            before, asked_before = asked_before, True
            granted = claim(database, requests, worker=self._runtime.name, asked_before=before) if requests else []
            claims = iter(granted)
            return [
                next(claims) if _is_tracked(entry.message) else self._claim_untracked_suspect(entry) for entry in batch
            ]

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
                if isinstance(answer, Claim):
                    self._fail(entry, answer, error)
            await self._give_back(
                [entry for entry, answer in zip(batch, answers, strict=True) if not isinstance(answer, Claim)]
            )

    def _claim_untracked_suspect(self, entry: InFlight) -> Claim:
        spared = suspect_runs.spared_deaths(self._runtime.database, entry.message.id, entry.delivery.deliveries)
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
                if entry.message.kind.delivery == "at_most_once":
                    early.append(entry.delivery)
            elif answer.reason == "held":
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
                self._run(entry, answer)
        changes = self._runtime.changes
        if changes is not None and changes.has_subscribers:  # as of the last look: a start may be missed
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


def _crashes(entry: InFlight) -> int:
    """Crashes of an untracked job, which has no row. Only the broker's count shows them, where it counts nothing else
    (RabbitMQ gives up on the message itself at its delivery limit)."""
    return 0 if entry.delivery.consumer.counts_releases else entry.delivery.deliveries - 1


def _untracked_claim(entry: InFlight, crashes: int = 0, *, quarantine: bool = False) -> Claim:
    message, now = entry.message, datetime.now(UTC)
    return Claim(message, 0, message.attempt, message.attempt - 1, crashes, now, tracked=False, quarantine=quarantine)
