"""The worker's heartbeat: it renews the lease, writes progress, and reads which jobs to cancel."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.members import heartbeats
from penstock.ledger.members.heartbeats import Progress
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

_BEAT_SECONDS = 0.5
_LATE_SECONDS = 10.0
"""A loop that has not turned for so long has stopped, unless the ledger does not answer."""


class Heartbeat:
    """Beats until it is cancelled. It is the `ProgressSink` of the running jobs.

    Arguments:
        running: the attempts by the job's id.
        cancel: stops an attempt whose job is to be cancelled.

    Attributes:
        latest: the latest progress by the job's id, until it is written with the outcome.
    """

    def __init__(self, runtime: Runtime, running: Mapping[str, Attempt], cancel: Callable[[Attempt], None]) -> None:
        self._runtime, self._running, self._cancel = runtime, running, cancel
        self.latest: dict[str, Progress] = {}
        self._turned_at = time.monotonic()

    def problem(self) -> str | None:
        """Why it has stopped; None: it beats. Only while the ledger answers."""
        seconds = time.monotonic() - self._turned_at
        return f"the heartbeat stopped {seconds:.0f} s ago" if seconds > _LATE_SECONDS else None

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
        """Keep the progress of a job for the next beat. Safe from any thread."""
        self.latest[job_id] = (done, total, note)

    async def run(self) -> None:
        """Beat regularly, until this is cancelled."""
        settings, changes = self._runtime.settings, self._runtime.changes
        pause = min(_BEAT_SECONDS, settings.lease_seconds / 3)
        written: dict[str, Progress] = {}
        while True:
            self._turned_at = time.monotonic()
            latest = {job_id: self.latest[job_id] for job_id in list(self.latest) if job_id in self._running}
            progress = {job_id: value for job_id, value in latest.items() if written.get(job_id) != value}
            beat = partial(
                heartbeats.beat,
                self._runtime.database,
                self._runtime.name,
                lease=settings.lease,
                progress=progress,
                peak_memory_bytes=peak_memory(),
            )
            try:
                for job_id in await self._runtime.io.ledger_once(beat):
                    if attempt := self._running.get(job_id):
                        self._cancel(attempt)
                written = latest
                if changes is not None:
                    changes.publish(list(progress))
            except LedgerUnavailable:
                pass  # whichever job needs the ledger reports it
            except Exception:
                # A progress that the database refuses must not end the lease of the whole worker.
                if not progress:
                    raise
                log.exception("the progress of %d jobs cannot be written and is left out", len(progress))
                written = latest
                continue
            await asyncio.sleep(pause)
