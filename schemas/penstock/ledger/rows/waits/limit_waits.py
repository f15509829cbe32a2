"""Jobs that wait for a slot of a limit, or for the end of a pause: each has a row here, and its own row is `scheduled`
for much later.

A row here counts as long as its job is `scheduled` for the time in this row. A job that was cancelled, rescheduled or
erased meanwhile leaves its row behind, which is deleted when its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.sql.tables import limit_waits as waits
from penstock.schemas.states import State

PAUSED = ":paused:"
"""Slots that begin so are those of pauses: no limit has an empty name."""

_GHOSTS = 500
"""Rows read beyond those that are needed, since many jobs may have been cancelled at once."""

_OF_LIMIT = ~waits.c.slot.startswith(PAUSED)
_UNTOUCHED = sa.and_(jobs.c.id == waits.c.job_id, jobs.c.state == State.SCHEDULED, jobs.c.due_at == waits.c.due_at)


@dataclass(frozen=True, slots=True)
class Turn:
    """First jobs in the queue of a slot.

    Attributes:
        job_ids: the oldest first.
        gone: ids of rows that no longer count.
        more: whether others wait behind them.
    """

    job_ids: list[str]
    gone: list[str]
    more: bool


def enter(connection: sa.Connection, database: Database, rows: Sequence[Row]) -> None:
    """Insert jobs that wait, in the transaction that puts them off. A job that has waited before keeps its position.

    Arguments:
        rows: job_id, slot, enqueued_at, due_at.
    """
    if rows:
        connection.execute(database.upsert(waits), list(rows))


def slots(database: Database) -> list[str]:
    """Slots of limits that jobs wait for."""
    select = sa.select(waits.c.slot).where(_OF_LIMIT).distinct()
    return database.read(lambda connection: list(connection.scalars(select)))


def any_waits() -> sa.ColumnElement[bool]:
    """Whether jobs wait for a limit."""
    return sa.exists(sa.select(waits.c.slot).where(_OF_LIMIT))


def turn(database: Database, slot: str, count: int) -> Turn:
    """Next jobs of a slot that admits `count`."""
    select = (
        sa.select(waits.c.job_id, jobs.c.id.is_not(None).label("counts"))
        .select_from(waits.outerjoin(jobs, _UNTOUCHED))
        .where(waits.c.slot == slot)
        .order_by(waits.c.enqueued_at, waits.c.job_id)
    )

    def first(limit: int) -> Sequence[sa.Row[tuple[str, bool]]]:
        return database.read(lambda connection: connection.execute(select.limit(limit)).all())

    for limit in (count + 1, count + _GHOSTS):
        rows = first(limit)
        waiting = [row.job_id for row in rows if row.counts]
        if len(waiting) > count or len(rows) < limit:
            break
    gone = [row.job_id for row in rows if not row.counts]
    return Turn(waiting[:count], gone, more=len(waiting) > count or len(rows) == limit)


_WAKE_IN_ORDER = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"), sa.exists().where(_UNTOUCHED))
    .values(due_at=sa.bindparam("b_due_at"))
)


def wake(database: Database, turn: Turn, *, in_order: bool = False) -> None:
    """Make these jobs due now.

    Arguments:
        in_order: they are sent in their order, at the cost of a statement for each.
    """
    if not turn.job_ids and not turn.gone:
        return

    def make_due(connection: sa.Connection) -> None:
        if turn.job_ids and in_order:
            now = connection.execute(sa.select(from_now())).scalar_one()
            first = now - timedelta(microseconds=len(turn.job_ids))
            due_at = {job_id: first + timedelta(microseconds=number) for number, job_id in enumerate(turn.job_ids)}
            # By their ids, so that no two dispatchers deadlock.
            rows = [{"b_id": job_id, "b_due_at": due_at[job_id]} for job_id in sorted(due_at)]
            database.execute_many(connection, _WAKE_IN_ORDER, rows)
        elif turn.job_ids:
            where = sa.exists().where(_UNTOUCHED)
            due = sa.update(jobs).where(database.among(jobs.c.id, turn.job_ids), where)
            connection.execute(due.values(due_at=from_now()))
        # None of those gone returns to the state in its row. At most it has a newer row, which stays.
        over = database.among(waits.c.job_id, turn.job_ids + turn.gone)
        connection.execute(sa.delete(waits).where(over, ~sa.exists().where(_UNTOUCHED)))

    database.write(make_due)


def waiting(connection: sa.Connection, job_id: str, most: int) -> tuple[str, int] | None:
    """Slot that a job waits for, and the number of jobs before it, up to `most`; None if it waits for no limit."""
    row = connection.execute(sa.select(waits).where(waits.c.job_id == job_id, sa.exists().where(_UNTOUCHED))).first()
    if row is None:
        return None
    older = sa.or_(
        waits.c.enqueued_at < row.enqueued_at,
        sa.and_(waits.c.enqueued_at == row.enqueued_at, waits.c.job_id < row.job_id),
    )
    rows = sa.select(waits.c.job_id).join(jobs, _UNTOUCHED).where(waits.c.slot == row.slot, older).limit(most)
    before = sa.select(sa.func.count()).select_from(rows.subquery())
    return row.slot, connection.execute(before).scalar_one()


def counts(database: Database) -> dict[str, int]:
    """Slot of a limit → number of waiting jobs."""
    count = sa.func.count().label("jobs")
    select = sa.select(waits.c.slot, count).select_from(waits.join(jobs, _UNTOUCHED)).where(_OF_LIMIT)
    select = select.group_by(waits.c.slot)
    return database.read(lambda connection: {row.slot: row.jobs for row in connection.execute(select)})


def count(database: Database, slot: str, most: int) -> int:
    """Number of jobs that wait for a slot, up to `most`."""
    rows = sa.select(waits.c.job_id).join(jobs, _UNTOUCHED).where(waits.c.slot == slot).limit(most)
    select = sa.select(sa.func.count()).select_from(rows.subquery())
    return database.read(lambda connection: connection.execute(select).scalar_one())
