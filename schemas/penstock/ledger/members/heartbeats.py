"""Heartbeats of workers. A worker's lease covers every job that it runs: one row to renew, however many jobs.

Leases use the database's clock, since the clocks of workers may differ by minutes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa

from penstock.ledger.members.controls import Controls
from penstock.ledger.members.leases import excuse_outage
from penstock.ledger.rows.rates import counting as rates
from penstock.ledger.rows.rates.counting import Cell, Tally
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, workers
from penstock.ledger.sql.text import LONGEST_NOTE, storable, storable_count
from penstock.schemas import __version__
from penstock.schemas.states import State

Progress = tuple[int, int | None, str | None]

DISPATCHER = "dispatcher"
"""Engine of a dispatcher: it has a row, as workers do, and runs no jobs."""

DRAIN, STOP = "drain", "stop"
"""Orders of a person's to a worker: take no more jobs, and end with the last one, or within the grace."""


class Answer(NamedTuple):
    """The ledger's answer to a heartbeat.

    Attributes:
        cancelled: ids of the worker's jobs that are to be cancelled.
        order: `DRAIN` or `STOP`; None: it goes on.
        controls: those in force.
    """

    cancelled: set[str]
    order: str | None
    controls: Controls


_PROGRESS = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"), jobs.c.worker == sa.bindparam("b_worker"), jobs.c.state == State.RUNNING)
    .values(
        progress_done=sa.bindparam("b_done"),
        progress_total=sa.bindparam("b_total"),
        progress_note=sa.bindparam("b_note"),
    )
)

_STARTED = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"), jobs.c.worker == sa.bindparam("b_worker"), jobs.c.state == State.RUNNING)
    .values(started_at=sa.bindparam("b_started_at"))
)


def register(
    database: Database,
    name: str,
    *,
    engine: str,
    queues: Iterable[str],
    kinds: Mapping[str, str],
    lease: timedelta,
    concurrency: int | None = None,
) -> None:
    """Register a worker that starts.

    Arguments:
        kinds: kind → queue, for each kind that it has handlers for.
        concurrency: attempts that it runs at a time; None: it runs no jobs.
    """
    row = {
        "name": name,
        "engine": engine,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "queues": json.dumps(sorted(queues)),
        "left_queues": None,
        "kinds": json.dumps(dict(kinds)),
        "started_at": datetime.now(UTC),
        "lease_until": from_now(lease),
        "peak_memory_bytes": None,
        "stopped_at": None,
        "ended": None,
        "version": __version__,
        "concurrency": concurrency,
        "pool_pids": None,
        "draining_at": None,
        "ordered": None,
    }

    def insert_row(connection: sa.Connection) -> None:
        excuse_outage(connection, database, lease)
        connection.execute(database.upsert(workers).values(row))

    database.write(insert_row)


class Consumed(NamedTuple):
    """Queues of a worker, as remote control has changed them.

    Attributes:
        queues: that it consumes; those that are paused too.
        left: that it was told to stop consuming.
    """

    queues: frozenset[str]
    left: frozenset[str]


def beat(
    database: Database,
    name: str,
    *,
    lease: timedelta,
    peak_memory_bytes: int | None = None,
    concurrency: int | None = None,
    draining: bool = False,
    consumed: Consumed | None = None,
    pool_pids: Sequence[int] | None = None,
) -> Answer:
    """Renew a worker's lease, write what it says of itself, and read its orders and the controls. It changes one row of
    a small table and nothing else: it must succeed wherever others can judge leases.

    Arguments:
        concurrency: None: as it was.
        draining: it takes no more jobs.
        consumed: its queues by now; None: as they were.
        pool_pids: the processes of its pool; None: it has none, or they are as they were.
    """

    def renew(connection: sa.Connection) -> Answer:
        sign: dict[str, Any] = {"lease_until": from_now(lease), "peak_memory_bytes": peak_memory_bytes}
        if concurrency is not None:
            sign["concurrency"] = concurrency
        if draining:
            sign["draining_at"] = sa.func.coalesce(workers.c.draining_at, from_now())
        if pool_pids is not None:
            sign["pool_pids"] = json.dumps(list(pool_pids))
        if consumed is not None:
            sign["queues"] = json.dumps(sorted(consumed.queues))
            sign["left_queues"] = json.dumps(sorted(consumed.left)) if consumed.left else None
        renewed = sa.update(workers).where(workers.c.name == name).values(**sign)
        if not connection.execute(renewed.where(workers.c.lease_until > from_now(lease / 2))).rowcount:
            excuse_outage(connection, database, lease)
            connection.execute(renewed)
        requested = sa.select(jobs.c.id).where(
            jobs.c.state == State.RUNNING, jobs.c.worker == name, jobs.c.cancel_requested
        )
        return Answer(set(connection.scalars(requested)), _order(connection, name), Controls.read(connection))

    return database.write(renew)


def read_orders(database: Database, name: str) -> Answer:
    """The answer to a heartbeat of a worker without jobs, without one: nothing is written."""
    return database.read(lambda connection: Answer(set(), _order(connection, name), Controls.read(connection)))


def _order(connection: sa.Connection, name: str) -> str | None:
    return connection.scalar(sa.select(workers.c.ordered).where(workers.c.name == name))


def report(
    database: Database,
    name: str,
    *,
    started: Mapping[str, datetime] = MappingProxyType({}),
    progress: Mapping[str, Progress] = MappingProxyType({}),
    tallies: Mapping[tuple[int, Cell], Tally] = MappingProxyType({}),
) -> None:
    """Write when jobs started that a worker had claimed ahead, their latest progress, and what it counted.

    Arguments:
        started, progress: by the job's id.
        tallies: see `rates.write`.
    """

    def write_all(connection: sa.Connection) -> None:
        if started:
            starts = [{"b_id": job_id, "b_worker": name, "b_started_at": at} for job_id, at in started.items()]
            connection.execute(_STARTED, starts)
        if progress:
            rows = [_progress_row(name, job_id, latest) for job_id, latest in progress.items()]
            connection.execute(_PROGRESS, rows)
        rates.write(connection, database, name, tallies)

    if started or progress or tallies:
        database.write(write_all)


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
