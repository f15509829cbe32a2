"""Record, then acknowledge: the end of a job's way through a worker, in batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.outcome import Ending, record
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
    """Takes endings one by one and writes those that gathered while the last batch was under way.

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
        self._endings: list[tuple[Held, Ending]] = []
        self._writing = False

    @property
    def busy(self) -> bool:
        return self._writing or bool(self._endings)

    def add(self, held: Held, ending: Ending) -> None:
        self._endings.append((held, ending))
        if not self._writing:
            self._writing = True
            self._tasks.spawn(self._write())

    async def _write(self) -> None:
        try:
            while self._endings:
                batch, self._endings = self._endings[:BATCH], self._endings[BATCH:]
                await self._record(batch)
        except LedgerUnavailable as error:
            log.error("%s; %d outcomes are lost with this worker, and their jobs will run again", error, len(batch))
            self._endings.clear()
        finally:
            self._writing = False

    async def _record(self, batch: list[tuple[Held, Ending]]) -> None:
        """A crash between the record and the acknowledgement repeats a delivery, which the claim then refuses."""
        changing = [ending for _, ending in batch if ending.needs_record]
        if endings := [ending for ending in changing if ending.recorded is None]:
            try:
                kept = await self._offload.ledger(lambda: record(self._database, endings, worker=self._worker))
            except LedgerUnavailable:
                raise
            except Exception as error:
                await self._record_one_by_one(batch, error)
                return
            for ending, keep in zip(endings, kept, strict=True):
                ending.recorded = keep
        if changing and self._pushes is not None:
            self._pushes.changed([ending.claim.message.id for ending in changing])
        done: list[Held] = []
        back: list[Held] = []
        for held, ending in batch:
            lost = ending.recorded is False
            # One that was lost goes back too: acknowledging it could take the entry from under the worker that has it.
            (back if lost or ending.outcome == Outcome.INTERRUPTED else done).append(held)
            if lost:
                log.warning("job %s: another worker has taken it over; this outcome is dropped", held.message.id)
                if ending.result_ref is not None:
                    self._tasks.spawn(self._results.drop(ending))
                continue
            if ending.waits_for is None:
                self._observers.ended(ending)
            else:
                self._observers.refused(ending.claim.message, "limited")
        if done:
            await self._offload.ack([held.delivery for held in done])
            self._settled(done)
        if back:
            self._settled(back)  # first: what is released may be back before this goes on
            await self._offload.release([held.delivery for held in back])

    async def _record_one_by_one(self, batch: list[tuple[Held, Ending]], error: Exception) -> None:
        """What the database refuses must not take the batch with it: that attempt alone has failed."""
        if len(batch) > 1:
            for one in batch:
                await self._record([one])
            return
        [(held, ending)] = batch
        log.error("the outcome of job %s cannot be recorded", held.message.id, exc_info=error)
        if ending.reason == "unrecordable":
            # Not even that. It stays with the broker, which gives it to another worker when this one ends.
            self._settled([held])
            return
        await self._record([(held, _unrecordable(ending, error))])


def _unrecordable(ending: Ending, error: Exception) -> Ending:
    text = f"its outcome ({ending.outcome}) cannot be recorded: {type(error).__name__}"
    return Ending(ending.claim, Outcome.DEAD, State.DEAD, datetime.now(UTC), error=text, reason="unrecordable")
