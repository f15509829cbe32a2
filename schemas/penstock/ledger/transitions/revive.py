"""What a person or a caller of the gateway asks of one job: to cancel it, or to try it again. All is audited."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.queries import status
from penstock.ledger.queries.status import UNSEEN
from penstock.ledger.rows import audit
from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.schemas.states import FINAL, State

FAILED = (State.DEAD, State.DISCARDED, State.CANCELLED)
"""What may be tried again without asking twice."""

REVIVED: Row = {
    "state": State.SCHEDULED,
    "failures": 0,
    "crashes": 0,
    "worker": None,
    "cancel_requested": False,
    "expires_at": None,  # who replays it wants it to run now, however old it is
    "started_at": None,
    "finished_at": None,
    "result": None,
    "result_ref": None,
    "error": None,
    "progress_done": None,
    "progress_total": None,
    "progress_note": None,
}
"""What becomes of a job that is tried again. Its fence stays: what an earlier worker may still write is refused, and
copies of earlier sendings are too."""

JUDGED = (jobs.c.id, jobs.c.state, (jobs.c.payload == UNSEEN).label("unseen"))
"""The columns by which `check_state` judges."""


def cancel(database: Database, job_id: str, *, actor: str, kind: str | None = None, tenant: str | None = None) -> State:
    """`records.cancel`, audited."""

    def write(connection: sa.Connection) -> State:
        state = status.cancel(connection, database, job_id, kind=kind, tenant=tenant)
        audit.write(connection, actor=actor, act="cancel", subject=job_id)
        return state

    return database.write(write)


def retry(database: Database, job_id: str, *, actor: str) -> None:
    """Try a job again, now, that ended without success; its dead letter counts as replayed.

    Raises:
        JobNotFound: it is not recorded. InvalidState: it has not ended, or succeeded, or its message was never read.
    """

    def write(connection: sa.Connection) -> None:
        was = revive(connection, database, job_id, FAILED)
        audit.write(connection, actor=actor, act="retry", subject=job_id, detail={"was": was})

    database.write(write)


def revive(connection: sa.Connection, database: Database, job_id: str, states: Sequence[State]) -> State:
    """Turn a job that ended into a waiting one, due now; its letter counts as replayed. Returns the state it was in.

    Arguments:
        states: those it may be in.

    Raises:
        JobNotFound: it is not recorded. InvalidState: it is in another state, or its message was never seen.
    """
    row = connection.execute(database.locked(sa.select(*JUDGED).where(jobs.c.id == job_id))).first()
    if row is None:
        raise JobNotFound(f"no job with the id {job_id} is recorded in the ledger")
    check_state(row, states)
    connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(due_at=from_now(), **REVIVED))
    close(connection, database, [job_id], "replayed_at")
    return State(row.state)


def revive_all(
    connection: sa.Connection, database: Database, ids: Sequence[str], after: timedelta = timedelta()
) -> None:
    """Turn those of these jobs that ended without success, or are workflows, into waiting ones; due after this."""
    if ids:
        ended = jobs.c.state.in_(sorted(FINAL if after else FINAL - {State.SUCCEEDED}))
        mine = sa.and_(database.among(jobs.c.id, ids), ended)
        connection.execute(sa.update(jobs).where(mine).values(due_at=from_now(after), **REVIVED))
        close(connection, database, ids, "replayed_at")


def check_state(job: Any, states: Sequence[State], *, read_anew: bool = False) -> None:
    """Raises InvalidState if this row of `JUDGED` cannot be tried again.

    Arguments:
        read_anew: its message is at hand, so it does not matter that no worker has seen it.
    """
    if job.unseen and not read_anew:
        raise InvalidState(f"job {job.id} was cancelled before its message was seen; enqueue it anew")
    if job.state not in states:
        raise InvalidState(f"job {job.id} is {job.state}; only one that is {' or '.join(states)} can be tried again")


def close(connection: sa.Connection, database: Database, ids: Sequence[str], how: str) -> None:
    """Enter that somebody has decided about these dead letters.

    Arguments:
        how: `replayed_at` or `discarded_at`.
    """
    if ids:
        mine = sa.and_(database.among(dead_letters.c.id, ids), dead_letters.c.replayed_at.is_(None))
        connection.execute(sa.update(dead_letters).where(mine).values({how: datetime.now(UTC)}))
