"""Test ledgers: a test plays broker, dispatcher and clock, and these functions write the rows that they would write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.jobs import waiting_row
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import (
    attempts,
    cancelled_keys,
    dead_letters,
    effects,
    held_jobs,
    jobs,
    limit_waits,
    steps,
    unique_keys,
    workflows,
)
from penstock.ledger.sql.types import UtcDateTime
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.schemas.states import WAITING, State
from penstock.schemas.wire.codec import Envelope

_JOB_TABLES = (
    *(jobs, attempts, unique_keys, cancelled_keys, dead_letters, effects, held_jobs, limit_waits),
    *(workflows, steps),
)
"""Tables about jobs. The leases of workers are left alone."""


def record_as_sent(database: Database, envelopes: Iterable[Envelope]) -> None:
    """Record jobs as if the broker had them, or the dispatcher. Jobs on record as sent stay as they are."""
    rows = []
    for envelope in envelopes:
        row = waiting_row(envelope)
        if envelope.queue != DISPATCHER_QUEUE:
            row |= {"state": State.QUEUED, "due_at": row["enqueued_at"]}
        rows.append(row)

    def record(connection: sa.Connection) -> None:
        connection.execute(database.insert_ignore(jobs), rows)
        # A unique job is on record before it is sent.
        sent = [row["id"] for row in rows if row["state"] == State.QUEUED]
        reserved = sa.and_(jobs.c.id.in_(sent), jobs.c.state == State.SCHEDULED)
        connection.execute(sa.update(jobs).where(reserved).values(state=State.QUEUED, due_at=jobs.c.enqueued_at))

    if rows:
        database.write(record)


def waiting_rows(database: Database) -> Sequence[Any]:
    """Rows of jobs that wait to be run, now or later."""
    select = sa.select(jobs).where(jobs.c.state.in_([State.QUEUED, *WAITING])).order_by(jobs.c.enqueued_at)
    return database.read(lambda connection: connection.execute(select).all())


def age(database: Database, by: timedelta) -> None:
    """Move all recorded times of jobs into the past by this much."""

    def move_times(connection: sa.Connection) -> None:
        for table in _JOB_TABLES:
            times = [column for column in table.columns if isinstance(column.type, UtcDateTime)]
            for row in connection.execute(sa.select(*table.primary_key.columns, *times)).all():
                values = row._mapping
                this_row = sa.and_(*(column == values[column] for column in table.primary_key.columns))
                change = {column.name: values[column] - by for column in times if values[column] is not None}
                if change:
                    connection.execute(sa.update(table).where(this_row).values(**change))

    database.write(move_times)


def mark_due_as_sent(connection: sa.Connection, ids: Sequence[str]) -> None:
    """Mark due jobs as sent at the time of their enqueueing, so that they show no delay."""
    due = sa.and_(jobs.c.id.in_(ids), jobs.c.state == State.SCHEDULED, jobs.c.due_at <= datetime.now(UTC))
    connection.execute(sa.update(jobs).where(due).values(state=State.QUEUED, due_at=jobs.c.enqueued_at))


def hand_over(connection: sa.Connection, row: Any) -> None:
    """Mark a job as sent. An untracked job leaves the ledger then, unless it has failed before."""
    if registry[row.kind].track or row.fence > 0 or row.failures > 0:
        connection.execute(
            sa.update(jobs).where(jobs.c.id == row.id).values(state=State.QUEUED, due_at=datetime.now(UTC))
        )
    else:
        connection.execute(sa.delete(jobs).where(jobs.c.id == row.id))
