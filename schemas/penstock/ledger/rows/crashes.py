"""What is known of workers that died: said by whoever watched them die, and told to those who ask why a job crashed."""

from __future__ import annotations

import socket
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers
from penstock.schemas.states import Outcome


def note_death(database: Database, pid: int, how: str, peak_memory_bytes: int | None) -> None:
    """Enter how a worker process on this host ended. Nothing happens if it was none, or had stopped in order.

    Arguments:
        how: such as `SIGKILL` or `exit code 1`.
        peak_memory_bytes: None: as its last heartbeat said.
    """
    # Pids come again: it was the one that was started last.
    process = sa.and_(workers.c.pid == pid, workers.c.host == socket.gethostname())
    latest = sa.select(workers.c.name, workers.c.stopped_at, workers.c.ended).where(process)
    latest = latest.order_by(workers.c.started_at.desc()).limit(1)

    def write(connection: sa.Connection) -> None:
        row = connection.execute(latest).first()
        if row is None or row.stopped_at is not None or row.ended is not None:
            return
        known: dict[str, Any] = {"ended": how[:32]}
        if peak_memory_bytes is not None:
            known["peak_memory_bytes"] = peak_memory_bytes
        connection.execute(sa.update(workers).where(workers.c.name == row.name).values(**known))

    database.write(write)


def crashed_attempt(row: Any, now: datetime, error: str) -> dict[str, Any]:
    """The attempt that a dead worker left behind, to be entered among the others.

    Arguments:
        row: the job's, as that worker had claimed it.
    """
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


class Crashes:
    """Describes the crashes of jobs, each worker looked up once."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._workers: dict[str, Any] = {}

    def describe(self, job: Any) -> str:
        """What became of the worker that had a job.

        Arguments:
            job: a row with `worker` and `started_at` of the attempt.
        """
        said = f"worker {job.worker} died or fell silent while it ran this"
        row = self._worker(job.worker) if job.worker else None
        if row is None or (job.started_at is not None and row.started_at > job.started_at):
            return said  # started anew under its name: the row is of another process
        facts = [f"host {row.host}, pid {row.pid}"]
        if row.stopped_at is None:
            facts.append(f"ended with {row.ended}" if row.ended else "how it ended is not known")
        if row.peak_memory_bytes is not None:
            facts.append(f"peak memory {in_mebibytes(row.peak_memory_bytes)}")
        return f"{said} ({'; '.join(facts)})"

    def _worker(self, name: str) -> Any:
        if name not in self._workers:
            columns = ("host", "pid", "started_at", "stopped_at", "ended", "peak_memory_bytes")
            select = sa.select(*(workers.c[column] for column in columns)).where(workers.c.name == name)
            self._workers[name] = self._connection.execute(select).first()
        return self._workers[name]


def in_mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
