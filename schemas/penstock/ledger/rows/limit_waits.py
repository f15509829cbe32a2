"""Who waits for a place under a limit: a row beside that of the job, which is `scheduled` for long after.

The row counts as long as the job waits untouched, due when this row says. One that was cancelled, rescheduled or
erased meanwhile leaves its row behind, which goes when its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.sql.tables import limit_waits as waits
from penstock.schemas.states import State

_GHOSTS = 500
"""Rows looked at beyond those that are wanted, since many may have been cancelled at once."""

_UNTOUCHED = sa.and_(jobs.c.id == waits.c.job_id, jobs.c.state == State.SCHEDULED, jobs.c.due_at == waits.c.due_at)


@dataclass(frozen=True, slots=True)
class Turn:
    """The first who wait for a slot.

    Attributes:
        job_ids: the oldest first.
        gone: ids of rows that do not count any more.
        more: others wait behind them.
    """

    job_ids: list[str]
    gone: list[str]
    more: bool


def enter(connection: sa.Connection, database: Database, rows: Sequence[Row]) -> None:
    """Enter who waits, in the transaction that puts the jobs off. One that has waited before has its place again.

    Arguments:
        rows: job_id, slot, enqueued_at, due_at.
    """
    if rows:
        connection.execute(database.upsert(waits), list(rows))


def slots(database: Database) -> list[str]:
    """Every slot that somebody waits for."""
    return database.read(lambda connection: list(connection.scalars(sa.select(waits.c.slot).distinct())))


def turn(database: Database, slot: str, count: int) -> Turn:
    """Whose turn it is, when a slot lets in so many."""
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


def wake(database: Database, turn: Turn) -> None:
    """Make their jobs due now."""
    if not turn.job_ids and not turn.gone:
        return

    def write(connection: sa.Connection) -> None:
        if turn.job_ids:
            where = sa.exists().where(_UNTOUCHED)
            due = sa.update(jobs).where(database.among(jobs.c.id, turn.job_ids), where)
            connection.execute(due.values(due_at=from_now()))
        # Of those gone none comes back to what its row says; at most it has entered a new one, which is looked for.
        over = database.among(waits.c.job_id, turn.job_ids + turn.gone)
        connection.execute(sa.delete(waits).where(over, ~sa.exists().where(_UNTOUCHED)))

    database.write(write)


def waiting(connection: sa.Connection, job_id: str, most: int) -> tuple[str, int] | None:
    """What a job waits for, and how many are before it, counted to `most`; None: it does not wait for a limit."""
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
    """How many wait, by slot."""
    count = sa.func.count().label("jobs")
    select = sa.select(waits.c.slot, count).select_from(waits.join(jobs, _UNTOUCHED)).group_by(waits.c.slot)
    return database.read(lambda connection: {row.slot: row.jobs for row in connection.execute(select)})
