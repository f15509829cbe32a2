"""Ended jobs → waiting jobs, due now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.rows.arrows import fan
from penstock.ledger.rows.jobs import UNSEEN, Row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.schemas.states import FINAL, State

ARROWS = fan((State.SUCCEEDED, State.DISCARDED, State.CANCELLED, State.DEAD), (State.SCHEDULED,), "tried again")

REVIVED: Row = {
    "state": State.SCHEDULED,
    "failures": 0,
    "crashes": 0,
    "worker": None,
    "cancel_requested": False,
    "expires_at": None,  # a replay means to run it now, however old it is
    "started_at": None,
    "finished_at": None,
    "result": None,
    "result_ref": None,
    "error": None,
    "progress_done": None,
    "progress_total": None,
    "progress_note": None,
}
"""Columns of a job that is tried again. Its fence stays, so late writes of an earlier worker are refused, and so are
copies of earlier sendings."""

CHECKED = (jobs.c.id, jobs.c.state, (jobs.c.payload == UNSEEN).label("unseen"))
"""The columns that `check_state` needs."""


def revive(connection: sa.Connection, database: Database, job_id: str, states: Sequence[State]) -> State:
    """Turn a job that ended into a waiting one, due now; its dead letter counts as replayed. Returns its former state.

    Arguments:
        states: in which it may be.

    Raises:
        JobNotFound: it is not recorded. InvalidState: it is in another state, or its message was never seen.
    """
    row = connection.execute(database.locked(sa.select(*CHECKED).where(jobs.c.id == job_id))).first()
    if row is None:
        raise JobNotFound(f"no job with the id {job_id} is recorded in the ledger")
    check_state(row, states)
    connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(due_at=from_now(), **REVIVED))
    close(connection, database, [job_id], "replayed_at")
    return State(row.state)


def revive_all(
    connection: sa.Connection, database: Database, ids: Sequence[str], *, parked: bool = False, succeeded: bool = False
) -> None:
    """Turn those of these jobs that ended without success, or are workflows, into waiting ones.

    Arguments:
        parked: they wait without a time, as the job of a workflow does. Else they are due now.
        succeeded: those that succeeded as well.
    """
    if ids:
        ended = jobs.c.state.in_(sorted(FINAL if parked or succeeded else FINAL - {State.SUCCEEDED}))
        where = sa.and_(database.among(jobs.c.id, ids), ended)
        connection.execute(sa.update(jobs).where(where).values(due_at=None if parked else from_now(), **REVIVED))
        close(connection, database, ids, "replayed_at")


def check_state(job: Any, states: Sequence[State], *, read_again: bool = False) -> None:
    """Raise InvalidState if this row of `CHECKED` cannot be tried again.

    Arguments:
        read_again: its message is at hand, so a worker need not have seen it.
    """
    if job.unseen and not read_again:
        raise InvalidState(f"job {job.id} was cancelled before its message was seen; enqueue it again")
    if job.state not in states:
        raise InvalidState(f"job {job.id} is {job.state}; only one that is {' or '.join(states)} can be tried again")


def close(connection: sa.Connection, database: Database, ids: Sequence[str], column: str) -> None:
    """Close these dead letters.

    Arguments:
        column: `replayed_at` or `discarded_at`.
    """
    if ids:
        where = sa.and_(database.among(dead_letters.c.id, ids), dead_letters.c.replayed_at.is_(None))
        connection.execute(sa.update(dead_letters).where(where).values({column: datetime.now(UTC)}))
