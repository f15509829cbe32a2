"""Heartbeats of workers. A worker's lease covers every job that it runs: one row to renew, however many jobs.

Leases use the database's clock, since the clocks of workers may differ by minutes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, workers
from penstock.ledger.sql.text import LONGEST_NOTE, storable, storable_count
from penstock.schemas.states import State

Progress = tuple[int, int | None, str | None]

DISPATCHER = "dispatcher"
"""Engine of a dispatcher: it has a row, as workers do, and runs no jobs."""

_PROGRESS = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"), jobs.c.worker == sa.bindparam("b_worker"), jobs.c.state == State.RUNNING)
    .values(
        progress_done=sa.bindparam("b_done"),
        progress_total=sa.bindparam("b_total"),
        progress_note=sa.bindparam("b_note"),
    )
)


def register(
    database: Database,
    name: str,
    *,
    engine: str,
    queues: Iterable[str],
    kinds: Mapping[str, str],
    lease: timedelta,
) -> None:
    """Register a worker that starts.

    Arguments:
        kinds: kind → queue, for each kind that it has handlers for.
    """
    row = {
        "name": name,
        "engine": engine,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "queues": json.dumps(sorted(queues)),
        "kinds": json.dumps(dict(kinds)),
        "started_at": datetime.now(UTC),
        "lease_until": from_now(lease),
        "peak_memory_bytes": None,
        "stopped_at": None,
        "ended": None,
    }
    database.write(lambda connection: connection.execute(database.upsert(workers).values(row)))


def beat(
    database: Database,
    name: str,
    *,
    lease: timedelta,
    progress: Mapping[str, Progress],
    peak_memory_bytes: int | None = None,
) -> set[str]:
    """Renew a worker's lease, write its peak of memory and the latest progress of its jobs, and return the ids it was
    asked to cancel."""

    def renew(connection: sa.Connection) -> set[str]:
        sign = {"lease_until": from_now(lease), "peak_memory_bytes": peak_memory_bytes}
        connection.execute(sa.update(workers).where(workers.c.name == name).values(**sign))
        if progress:
            rows = [_progress_row(name, job_id, latest) for job_id, latest in progress.items()]
            connection.execute(_PROGRESS, rows)
        requested = sa.select(jobs.c.id).where(
            jobs.c.state == State.RUNNING, jobs.c.worker == name, jobs.c.cancel_requested
        )
        return set(connection.scalars(requested))

    return database.write(renew)


def sign_off(database: Database, name: str) -> None:
    """Record that a worker has stopped normally."""
    ended = {"stopped_at": datetime.now(UTC), "lease_until": from_now()}
    statement = sa.update(workers).where(workers.c.name == name).values(**ended)
    database.write(lambda connection: connection.execute(statement))


def record_worker_exit(database: Database, pid: int, status: str, peak_memory_bytes: int | None) -> None:
    """Record how a process of this host ended. Does nothing if it was not a worker, or had stopped normally.

    Arguments:
        status: such as `SIGKILL` or `exit code 1`.
        peak_memory_bytes: None: keep the figure of its last heartbeat.
    """
    # Pids are reused: the worker that started last is meant.
    process = sa.and_(workers.c.pid == pid, workers.c.host == socket.gethostname())
    latest = sa.select(workers.c.name, workers.c.stopped_at, workers.c.ended).where(process)
    latest = latest.order_by(workers.c.started_at.desc()).limit(1)

    def record_exit(connection: sa.Connection) -> None:
        row = connection.execute(latest).first()
        if row is None or row.stopped_at is not None or row.ended is not None:
            return
        change: dict[str, Any] = {"ended": status[:32]}
        if peak_memory_bytes is not None:
            change["peak_memory_bytes"] = peak_memory_bytes
        connection.execute(sa.update(workers).where(workers.c.name == row.name).values(**change))

    database.write(record_exit)


def known_kinds(database: Database) -> dict[str, str]:
    """Kind → queue, over all workers on record."""

    def read_kinds(connection: sa.Connection) -> dict[str, str]:
        queues: dict[str, str] = {}
        for kinds in connection.scalars(sa.select(workers.c.kinds).order_by(workers.c.started_at)):
            queues.update(json.loads(kinds))
        return queues

    return database.read(read_kinds)


def _progress_row(worker: str, job_id: str, latest: Progress) -> dict[str, Any]:
    done, total, note = latest
    return {
        "b_id": job_id,
        "b_worker": worker,
        "b_done": storable_count(done),
        "b_total": storable_count(total),
        "b_note": storable(note, LONGEST_NOTE) or None,
    }
