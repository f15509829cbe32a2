"""Jobs on record: lists, one job with its attempts, counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import JobNotFound
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import WAITING, State

LISTED = (
    "id",
    "kind",
    "queue",
    "state",
    "attempt",
    "failures",
    "crashes",
    "key",
    "tenant",
    "worker",
    "enqueued_at",
    "due_at",
    "started_at",
    "finished_at",
    "error",
)
"""The columns of a list: no payload and no result, which may be large and hold what no one should see."""


def find(
    database: Database,
    *,
    state: State | None = None,
    kind: str | None = None,
    queue: str | None = None,
    key: str | None = None,
    tenant: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> Sequence[Any]:
    """Jobs, the newest first, with the columns of `LISTED`.

    Arguments:
        since: enqueued at that time or later.
    """
    # While a job is queued, the column holds when it was sent.
    due_at = sa.case((jobs.c.state.in_(WAITING), jobs.c.due_at)).label("due_at")
    select = sa.select(*(due_at if name == "due_at" else jobs.c[name] for name in LISTED))
    equal = ((jobs.c.state, state), (jobs.c.kind, kind), (jobs.c.queue, queue), (jobs.c.key, key))
    for column, value in (*equal, (jobs.c.tenant, tenant)):
        if value is not None:
            select = select.where(column == value)
    if since is not None:
        select = select.where(jobs.c.enqueued_at >= since)
    # Ids are UUIDv7, so the primary key gives the order of time without a sort.
    select = select.order_by(jobs.c.id.desc()).limit(limit)
    return database.read(lambda connection: connection.execute(select).all())


def show(database: Database, job_id: str) -> tuple[Any, Sequence[Any]]:
    """A job's whole row and its attempts, the first one first. Raises JobNotFound."""

    def read_job(connection: sa.Connection) -> tuple[Any, Sequence[Any]]:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).first()
        select = sa.select(history).where(history.c.job_id == job_id).order_by(history.c.fence)
        return row, connection.execute(select).all()

    row, attempts = database.read(read_job)
    if row is None:
        raise JobNotFound(f"no job with the id {job_id} is recorded in the ledger")
    return row, attempts


def counts(database: Database, states: Sequence[State]) -> dict[str, dict[str, int]]:
    """How many jobs are recorded in these states: queue, then state, then the number."""
    select = sa.select(jobs.c.queue, jobs.c.state, sa.func.count()).where(jobs.c.state.in_(states))
    counted: dict[str, dict[str, int]] = {}
    for queue, state, number in database.read(
        lambda connection: connection.execute(select.group_by(jobs.c.queue, jobs.c.state)).all()
    ):
        counted.setdefault(queue, {})[state] = number
    return counted
