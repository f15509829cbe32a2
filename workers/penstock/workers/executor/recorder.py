"""Record, then acknowledge: the end of a job's way through a worker, in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from penstock.config.errors import LedgerUnavailable
from penstock.config.supervision import give_up
from penstock.ledger.rows.waits.limit_waits import PAUSED
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.schemas.states import Outcome, State
from penstock.workers.executor.attempt.attempt import ClaimedJob
from penstock.workers.executor.attempt.large_results import LargeResults
from penstock.workers.executor.attempt.outcome import internal_error
from penstock.workers.executor.runtime.capacity import InFlight
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

BATCH = 500
"""Jobs in one transaction at most."""


class Recorder:
    """Takes single outcomes, and writes together those that gathered while the last batch was under way.

    Arguments:
        results: keeps the results that are too large for the ledger.
        settled: called with jobs that were acknowledged, released or given up.
    """

    def __init__(self, runtime: Runtime, results: LargeResults, settled: Callable[[list[InFlight]], None]) -> None:
        self._runtime, self._results, self._settled = runtime, results, settled
        self._outcomes: list[tuple[InFlight, AttemptOutcome]] = []
        self._writing = False

    @property
    def busy(self) -> bool:
        return self._writing or bool(self._outcomes)

    def add(self, entry: InFlight, outcome: AttemptOutcome) -> None:
        self._outcomes.append((entry, outcome))
        if not self._writing:
            self._writing = True
            self._runtime.tasks.spawn(self._write())

    async def _write(self) -> None:
        try:
            while self._outcomes:
                batch, self._outcomes = self._outcomes[:BATCH], self._outcomes[BATCH:]
                try:
                    await self._record(batch)
                except LedgerUnavailable:
                    raise
                except Exception as error:
                    await self._fail(batch, error)
        except LedgerUnavailable as error:
            log.error("%s; %d outcomes are lost with this worker, and their jobs will run again", error, len(batch))
            self._outcomes.clear()
        finally:
            self._writing = False

    async def _record(self, batch: list[tuple[InFlight, AttemptOutcome]]) -> None:
        """Record, then acknowledge. A crash in between repeats a delivery, which the claim then refuses."""
        changing = [outcome for _, outcome in batch if outcome.needs_record]
        if outcomes := [outcome for outcome in changing if outcome.recorded is None]:
            asked_at, began = time.time_ns(), time.perf_counter()
            try:
                kept = await self._runtime.io.ledger(
                    lambda: record(self._runtime.database, outcomes, worker=self._runtime.name)
                )
                self._runtime.meter.step("record", time.perf_counter() - began)
            except LedgerUnavailable:
                raise
            except Exception as error:
                await self._record_one_by_one(batch, error)
                return
            for outcome, keep in zip(outcomes, kept, strict=True):
                outcome.recorded, outcome.asked_at = keep, asked_at
        if changing and self._runtime.changes is not None:
            self._runtime.changes.publish([outcome.claim.message.id for outcome in changing])
        done: list[InFlight] = []
        back: list[InFlight] = []
        ended: list[AttemptOutcome] = []
        for entry, outcome in batch:
            lost = outcome.recorded is False
            # A job that was lost goes back too: an acknowledgement could take the entry from the worker that has it.
            (back if lost or outcome.name == Outcome.INTERRUPTED else done).append(entry)
            if lost:
                log.warning("job %s: another worker has taken it over; this outcome is dropped", entry.message.id)
                self._runtime.observers.lost(outcome)
                outcome.exception = None
                if outcome.result_ref is not None:
                    self._runtime.tasks.spawn(self._results.drop(outcome))
                continue
            if outcome.waits_for is None:
                if outcome.begun:
                    ended.append(outcome)
                    self._notify(outcome)
            else:
                reason = "paused" if outcome.waits_for.startswith(PAUSED) else "limited"
                self._runtime.observers.refused(outcome.claim.message, reason)
        self._count(ended)
        if done:
            await self._runtime.io.ack([entry.delivery for entry in done])
            self._settled(done)
        if back:
            self._settled(back)  # first: what is released may be back before this goes on
            await self._runtime.io.release([entry.delivery for entry in back])

    async def _fail(self, batch: list[tuple[InFlight, AttemptOutcome]], error: Exception) -> None:
        """Record an internal error for those of a batch whose outcomes are not on record."""
        log.exception("%d jobs met an internal error when their outcomes were recorded", len(batch))
        entries = [entry for entry, _ in batch]
        outcomes = [internal_error(ClaimedJob(outcome.claim, entry.handler), error) for entry, outcome in batch]
        database, worker = self._runtime.database, self._runtime.name
        try:
            kept = await self._runtime.io.ledger(lambda: record(database, outcomes, worker=worker))
        except LedgerUnavailable:
            raise
        except Exception:
            log.critical("%d jobs cannot be recorded; this worker ends with its lease", len(batch), exc_info=True)
            give_up("outcomes cannot be recorded")
            self._settled(entries)  # and not acknowledged: when this worker has ended, another one gets them
            return
        for (_, failed), outcome, keep in zip(batch, outcomes, kept, strict=True):
            failed.exception = None
            if keep:
                self._notify(outcome)
        self._count([outcome for outcome, keep in zip(outcomes, kept, strict=True) if keep])
        self._settled(entries)
        await self._runtime.io.ack([entry.delivery for entry, keep in zip(entries, kept, strict=True) if keep])
        # Those that have an outcome on record already, here or by another worker: their next claim is refused.
        await self._runtime.io.release([entry.delivery for entry, keep in zip(entries, kept, strict=True) if not keep])

    def _notify(self, outcome: AttemptOutcome) -> None:
        """Tell the observers of an outcome that is on record."""
        self._runtime.observers.ended(outcome)
        outcome.exception = None  # its frames hold the job, and what the handler had in hand

    def _count(self, outcomes: list[AttemptOutcome]) -> None:
        try:
            self._runtime.rates.add(outcomes)
        except Exception:
            log.exception("%d jobs are not in the rates", len(outcomes))

    async def _record_one_by_one(self, batch: list[tuple[InFlight, AttemptOutcome]], error: Exception) -> None:
        """Record the outcomes singly: one that the database refuses must not take the batch with it."""
        if len(batch) > 1:
            for entry, outcome in batch:
                await self._record([(entry, outcome)])
            return
        [(entry, outcome)] = batch
        log.error("the outcome of job %s cannot be recorded", entry.message.id, exc_info=error)
        outcome.exception = None
        if outcome.reason == "unrecordable":
            # Not even that can be recorded. The job stays with the broker; when this worker ends, another gets it.
            self._settled([entry])
            return
        await self._record([(entry, _unrecordable(outcome, error))])


def _unrecordable(outcome: AttemptOutcome, error: Exception) -> AttemptOutcome:
    text = f"its outcome ({outcome.name}) cannot be recorded: {type(error).__name__}"
    return AttemptOutcome(outcome.claim, Outcome.DEAD, State.DEAD, datetime.now(UTC), error=text, reason="unrecordable")
