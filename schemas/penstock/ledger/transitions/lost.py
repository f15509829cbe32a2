"""Jobs that the broker has lost: the ledger recorded them as sent, and has them sent again.

A `queued` row keeps in `due_at` when it was sent. The caller knows what a broker cannot hold any more: all that was
sent before it was wiped, or before the oldest message of a lane. It puts those rows back: they wait again, due at once,
and the dispatcher sends them under the same id, attempt and fence. So a copy of a job that was not lost is harmless:
one of them is claimed, and the others are refused.

Times to compare with are on the database's clock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members.leases import excuse_outage
from penstock.ledger.rows import suspect_runs
from penstock.ledger.rows.arrows import Arrow, fan
from penstock.ledger.rows.attempts import crashed_attempt
from penstock.ledger.rows.ended import announce_ends, count_rows, final_columns
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, jobs, workers
from penstock.schemas.states import Outcome, State

ARROWS = (
    *fan((State.QUEUED, State.RUNNING), (State.SCHEDULED,), "lost by the broker"),
    Arrow(State.RUNNING, State.CANCELLED, "lost, and was to be cancelled"),
)

Lane = tuple[str, str]
"""A queue and a priority."""

BATCH = 500
PATIENT_LEASES = 2
"""Leases after its sending from which on a job is missed."""
_LOST = "worker {worker} died or fell silent while it ran this, and the broker lost it"
SILENT_LEASES = 4
"""Leases, beyond its own, for which a worker is silent before its jobs count as lost, or dead."""


def clock(database: Database) -> datetime:
    """The time on the database's clock."""
    now = sa.select(from_now().label("now"))
    return database.read(lambda connection: connection.execute(now).scalar_one())


def suspects(database: Database, patience: timedelta, silence: timedelta) -> set[Lane]:
    """Lanes with jobs that were sent longer ago than `patience` and have not started, or whose worker has been silent
    for longer than `silence` after its lease.

    Only lanes of queues that a worker on record consumes now: without one no job is missed, and jobs that others run,
    such as an unmodified Celery worker, are not recorded here and would never stop being missed.
    """

    def read_lanes(connection: sa.Connection) -> tuple[set[Lane], list[str]]:
        alive = sa.select(workers.c.queues).where(workers.c.lease_until > from_now(), workers.c.stopped_at.is_(None))
        consumed = list(connection.scalars(alive))
        if not consumed:
            return set(), []
        lane = sa.select(jobs.c.queue, jobs.c.priority).distinct()
        queued = lane.where(jobs.c.state == State.QUEUED, jobs.c.due_at <= before)
        running = lane.where(*_abandoned(silence))
        return {
            (row.queue, row.priority) for select in (queued, running) for row in connection.execute(select)
        }, consumed

    before = clock(database) - patience
    lanes, consumed = database.read(read_lanes)
    live = {queue for queues in consumed for queue in json.loads(queues)}
    return {lane for lane in lanes if lane[0] in live}


def put_back(database: Database, before: datetime, lane: Lane | None = None, limit: int = BATCH) -> int:
    """Put back queued jobs that were sent before this time, the longest ago first. Returns how many.

    Arguments:
        lane: only those of this one.
    """
    lost = [jobs.c.state == State.QUEUED, jobs.c.due_at < before]
    if lane is not None:
        lost += [jobs.c.queue == lane[0], jobs.c.priority == lane[1]]
    select = sa.select(jobs.c.id).where(*lost).order_by(jobs.c.due_at).limit(limit)
    # Looking takes no lock, and almost always finds nothing.
    if database.read(lambda connection: connection.execute(select.limit(1)).first()) is None:
        return 0

    def schedule_again(connection: sa.Connection) -> int:
        ids = list(connection.scalars(database.locked(select, skip=True)))
        if ids:
            rows = sa.update(jobs).where(database.among(jobs.c.id, ids))
            connection.execute(rows.values(state=State.SCHEDULED, due_at=from_now()))
        return len(ids)

    return database.write(schedule_again)


def put_back_running(
    database: Database, silence: timedelta, lane: Lane, limit: int = BATCH, *, lease: timedelta = timedelta()
) -> int:
    """Put back running jobs of a lane whose worker has been silent for so long after its lease.

    That counts as a crash, and the fence rises: should the worker only have been suspended, it writes nothing
    afterwards. A job that was asked to cancel ends as cancelled instead.

    Arguments:
        lease: see `excuse_outage`.
    """
    lost = (*_abandoned(silence), jobs.c.queue == lane[0], jobs.c.priority == lane[1])
    select = sa.select(jobs).where(*lost).order_by(jobs.c.id).limit(limit)
    if database.read(lambda connection: connection.execute(select.limit(1)).first()) is None:
        return 0

    def end_crashed_attempts(connection: sa.Connection) -> int:
        excuse_outage(connection, database, lease)
        rows = connection.execute(database.locked(select, skip=True)).all()
        put_back_crashed(connection, database, rows, _LOST)
        return len(rows)

    return database.write(end_crashed_attempts)


def put_back_crashed(connection: sa.Connection, database: Database, rows: Sequence[Any], error: str) -> None:
    """Put back running jobs whose worker died, due at once; end those as cancelled that were asked to cancel.

    Arguments:
        rows: of the jobs, locked.
        error: of the attempts, with `{worker}` in place of the worker's name.
    """
    now = datetime.now(UTC)
    spared = {row.id for row in rows if suspect_runs.spare(connection, row)}
    crashes = jobs.c.crashes + sa.case((database.among(jobs.c.id, list(spared)), 0), else_=1)
    raised = {"worker": None, "fence": jobs.c.fence + 1, "crashes": crashes}
    again = {"state": State.SCHEDULED, "due_at": from_now()}
    # Its worker was asked to stop it, and it must not start again.
    ended = final_columns(State.CANCELLED, now, cancel_requested=False)
    for cancelled, change in ((False, again), (True, ended)):
        if ended_rows := [row for row in rows if row.cancel_requested == cancelled]:
            ids = [row.id for row in ended_rows]
            count_rows(connection, Outcome.CANCELLED if cancelled else Outcome.CRASHED, ended_rows)
            connection.execute(sa.update(jobs).where(database.among(jobs.c.id, ids)).values(**change, **raised))
            if cancelled:
                announce_ends(connection, database, ids)
    if rows:
        crashed = [
            crashed_attempt(row, now, error.format(worker=row.worker), counts=row.id not in spared) for row in rows
        ]
        connection.execute(database.insert_ignore(attempts), crashed)


def _abandoned(silence: timedelta) -> tuple[sa.ColumnElement[bool], ...]:
    # A job that may never be repeated is left to `abandoned`, which buries it.
    heard = sa.exists().where(
        workers.c.name == jobs.c.worker, workers.c.lease_until > from_now(-silence), workers.c.stopped_at.is_(None)
    )
    return jobs.c.state == State.RUNNING, jobs.c.delivery != "at_most_once", ~heard
