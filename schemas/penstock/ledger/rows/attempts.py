"""Attempts of jobs, as people see them.

An attempt that succeeds, as almost every one does, is not written a second time: the job's own row has all of it until
the job is tried again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.tables import attempts, jobs, workers
from penstock.schemas.states import Outcome, State

_SUCCESSES = sa.select(
    jobs.c.id,
    jobs.c.fence,
    jobs.c.attempt,
    sa.func.coalesce(jobs.c.worker, ""),
    jobs.c.started_at,
    jobs.c.finished_at,
    sa.literal(Outcome.SUCCEEDED.value),
    sa.null(),
    sa.null(),
).where(jobs.c.state == State.SUCCEEDED)

history = sa.union_all(sa.select(attempts), _SUCCESSES).subquery("history")
"""All attempts, with the columns of the table of attempts."""


def keep_success(connection: sa.Connection, job_id: str) -> None:
    """Insert the attempt of a job that succeeded and whose row is about to change."""
    connection.execute(sa.insert(attempts).from_select(list(attempts.c), _SUCCESSES.where(jobs.c.id == job_id)))


def crashed_attempt(row: Any, now: datetime, error: str, *, counts: bool = True) -> dict[str, Any]:
    """Row of the attempt that a dead worker left behind.

    Arguments:
        row: the job's, as that worker had claimed it.
        counts: whether it is a crash of this job; see `suspect_runs`.
    """
    if not counts:
        error = f"{error}, in a process of its own: it does not count as a crash of this job"
    return {
        "job_id": row.id,
        "fence": row.fence,
        "number": row.attempt,
        "worker": row.worker or "",
        "started_at": row.started_at or now,
        "finished_at": now,
        "outcome": Outcome.CRASHED,
        "error": error,
        "traceback": None,
    }


class CrashReports:
    """Describes crashes of jobs. Looks each worker up once."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._workers: dict[str, Any] = {}

    def describe(self, job: Any) -> str:
        """Crash of the worker that had a job, in one line.

        Arguments:
            job: a row with `worker` and `started_at` of the attempt.
        """
        text = f"worker {job.worker} died or fell silent while it ran this"
        row = self._worker(job.worker) if job.worker else None
        if row is None or (job.started_at is not None and row.started_at > job.started_at):
            return text  # started again under its name: the row is of another process
        facts = [f"host {row.host}, pid {row.pid}"]
        if row.stopped_at is None:
            facts.append(f"ended with {row.ended}" if row.ended else "how it ended is not known")
        if row.peak_memory_bytes is not None:
            facts.append(f"peak memory {in_mebibytes(row.peak_memory_bytes)}")
        return f"{text} ({'; '.join(facts)})"

    def _worker(self, name: str) -> Any:
        if name not in self._workers:
            columns = ("host", "pid", "started_at", "stopped_at", "ended", "peak_memory_bytes")
            select = sa.select(*(workers.c[column] for column in columns)).where(workers.c.name == name)
            self._workers[name] = self._connection.execute(select).first()
        return self._workers[name]


def in_mebibytes(size: int, digits: int = 0) -> str:
    return f"{size / 2**20:.{digits}f} MiB"
