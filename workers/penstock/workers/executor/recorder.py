"""Record, then acknowledge: the end of a job's way through a worker, in batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.schemas.states import Outcome, State
from penstock.workers.executor.attempt.large_results import LargeResults
from penstock.workers.executor.capacity import Held
from penstock.workers.executor.followups.change_publisher import Pushes
from penstock.workers.executor.io_threads import Offload
from penstock.workers.executor.loop_thread import Tasks
from penstock.workers.executor.observers import Observers

log = logging.getLogger("penstock.executor")

BATCH = 500
"""Jobs in one transaction at most."""


class Recorder:
    """Takes outcomes one by one and writes those that gathered while the last batch was under way.

    Arguments:
        results: where those are that are too large for the ledger.
        pushes: tells those who watch a job; None: they look by themselves.
        settled: called with what was acknowledged, released or given up.
    """

    def __init__(
        self,
        database: Database,
        worker: str,
        offload: Offload,
        tasks: Tasks,
        observers: Observers,
        results: LargeResults,
        pushes: Pushes | None,
        settled: Callable[[list[Held]], None],
    ) -> None:
        self._database, self._worker, self._offload, self._tasks = database, worker, offload, tasks
        self._results, self._pushes = results, pushes
        self._observers, self._settled = observers, settled
        self._outcomes: list[tuple[Held, AttemptOutcome]] = []
        self._writing = False

    @property
    def busy(self) -> bool:
        return self._writing or bool(self._outcomes)

    def add(self, held: Held, outcome: AttemptOutcome) -> None:
        self._outcomes.append((held, outcome))
        if not self._writing:
            self._writing = True
            self._tasks.spawn(self._write())

    async def _write(self) -> None:
        try:
            while self._outcomes:
                batch, self._outcomes = self._outcomes[:BATCH], self._outcomes[BATCH:]
                await self._record(batch)
        except LedgerUnavailable as error:
            log.error("%s; %d outcomes are lost with this worker, and their jobs will run again", error, len(batch))
            self._outcomes.clear()
        finally:
            self._writing = False

    async def _record(self, batch: list[tuple[Held, AttemptOutcome]]) -> None:
        """A crash between the record and the acknowledgement repeats a delivery, which the claim then refuses."""
        changing = [outcome for _, outcome in batch if outcome.needs_record]
        if outcomes := [outcome for outcome in changing if outcome.recorded is None]:
            try:
                kept = await self._offload.ledger(lambda: record(self._database, outcomes, worker=self._worker))
            except LedgerUnavailable:
                raise
            except Exception as error:
                await self._record_one_by_one(batch, error)
                return
            for outcome, keep in zip(outcomes, kept, strict=True):
                outcome.recorded = keep
        if changing and self._pushes is not None:
            self._pushes.changed([outcome.claim.message.id for outcome in changing])
        done: list[Held] = []
        back: list[Held] = []
        for held, outcome in batch:
            lost = outcome.recorded is False
            # One that was lost goes back too: acknowledging it could take the entry from under the worker that has it.
            (back if lost or outcome.name == Outcome.INTERRUPTED else done).append(held)
            if lost:
                log.warning("job %s: another worker has taken it over; this outcome is dropped", held.message.id)
                if outcome.result_ref is not None:
                    self._tasks.spawn(self._results.drop(outcome))
                continue
            if outcome.waits_for is None:
                self._observers.ended(outcome)
            else:
                self._observers.refused(outcome.claim.message, "limited")
        if done:
            await self._offload.ack([held.delivery for held in done])
            self._settled(done)
        if back:
            self._settled(back)  # first: what is released may be back before this goes on
            await self._offload.release([held.delivery for held in back])

    async def _record_one_by_one(self, batch: list[tuple[Held, AttemptOutcome]], error: Exception) -> None:
        """What the database refuses must not take the batch with it: that attempt alone has failed."""
        if len(batch) > 1:
            for one in batch:
                await self._record([one])
            return
        [(held, outcome)] = batch
        log.error("the outcome of job %s cannot be recorded", held.message.id, exc_info=error)
        if outcome.reason == "unrecordable":
            # Not even that. It stays with the broker, which gives it to another worker when this one ends.
            self._settled([held])
            return
        await self._record([(held, _unrecordable(outcome, error))])


def _unrecordable(outcome: AttemptOutcome, error: Exception) -> AttemptOutcome:
    text = f"its outcome ({outcome.name}) cannot be recorded: {type(error).__name__}"
    return AttemptOutcome(outcome.claim, Outcome.DEAD, State.DEAD, datetime.now(UTC), error=text, reason="unrecordable")
