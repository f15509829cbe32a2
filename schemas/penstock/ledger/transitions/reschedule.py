"""Rescheduling jobs that wait for their time, by id or by key."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.rows import audit
from penstock.ledger.rows.arrows import Arrow
from penstock.ledger.rows.keys import exact, kind_name, select_by_key, selection_detail
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.jobs.unique_policy import UNENDED
from penstock.schemas.states import WAITING, State

ARROWS = tuple(Arrow(state, state, "rescheduled") for state in (State.SCHEDULED, State.RETRYING))


def reschedule(database: Database, job_id: str, due_at: datetime, *, actor: str | None = None) -> None:
    """Move the due time of a job that waits for it in the ledger.

    Arguments:
        actor: for the audit log; None: a program moves its own job, which is not audited.

    Raises:
        InvalidState: it does not wait for its time, or would expire before; JobNotFound: it is not recorded.
    """

    def move_and_audit(connection: sa.Connection) -> None:
        reschedule_in(connection, database, job_id, due_at)
        if actor is not None:
            audit.write(connection, actor=actor, act="reschedule", subject=job_id, detail={"due_at": due_at})

    database.write(move_and_audit)


def reschedule_in(connection: sa.Connection, database: Database, job_id: str, due_at: datetime) -> None:
    """`reschedule` in a transaction of the caller's."""
    select = sa.select(jobs.c.id, jobs.c.state, jobs.c.expires_at).where(jobs.c.id == job_id)
    row = connection.execute(database.locked(select)).first()
    if row is None:
        raise JobNotFound(f"job {job_id} is not recorded; one that waits in the broker has no due time")
    _move(connection, row, due_at)


def reschedule_key(
    database: Database,
    key: str,
    due_at: datetime,
    *,
    kind: str | None = None,
    tenant: str | None = None,
    actor: str | None = None,
) -> list[str]:
    """See `Producer.reschedule`.

    Arguments:
        actor: for the audit log; None: not audited.
    """
    select = select_by_key(key, kind and kind_name(kind), tenant).where(jobs.c.state.in_(sorted(UNENDED)))

    def move_all(connection: sa.Connection) -> list[str]:
        rows = exact(connection.execute(database.locked(select)).all(), key, tenant)
        if not rows:
            raise JobNotFound(f"no job with the key {key!r} waits or runs")
        waiting = [row for row in rows if row.state in WAITING]
        for row in waiting or rows[:1]:
            _move(connection, row, due_at)
        ids = [row.id for row in waiting]
        if actor is not None:
            detail = {**selection_detail(key, kind, tenant), "due_at": due_at}
            audit.Entry(database, actor=actor, act="reschedule", detail=detail).write(connection, ids)
        return ids

    return database.write(move_all)


def _move(connection: sa.Connection, row: Any, due_at: datetime) -> None:
    if row.state not in WAITING:
        raise InvalidState(f"job {row.id} is {row.state}; only one that waits for its time can be rescheduled")
    if row.expires_at is not None and row.expires_at <= due_at:
        raise InvalidState(f"job {row.id} expires at {row.expires_at.isoformat()}, before {due_at.isoformat()}")
    # The fence rises, so that a copy that a dispatcher may be sending at this moment is refused. It rises by two, since
    # a dispatcher that does not know the kind sends at least 1.
    change = {"due_at": due_at, "fence": jobs.c.fence + 2}
    connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**change))
