"""Jobs that wait for their time: delayed ones, retries and those put back, kept in the ledger until they are due.

Several dispatchers send due jobs at once, in three short steps, so that no lock is held during the sending: *reserve*
(the due time moves a little ahead; rows that another dispatcher holds are skipped), send, *mark*. A dispatcher that
dies in between leaves rows that are due again when the reservation ends. A job that it had sent already goes out twice
under one id, attempt and fence, which the claim absorbs.

A row that is marked as sent keeps in `due_at` when that was, on the database's clock: `resending` looks for those that
the broker has lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.arrows import Arrow, fan
from penstock.ledger.rows.ended import final_columns
from penstock.ledger.rows.jobs import RESERVED, Row, body_of_row, mark_sent, reserved
from penstock.ledger.rows.jobs import waiting as waiting
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.cancel import cancel_unseen, cancelled_before
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import WAITING, State
from penstock.schemas.wire.codec import Envelope, seal

ARROWS = (
    Arrow(None, State.SCHEDULED, "recorded until due"),
    Arrow(None, State.CANCELLED, "its key was cancelled before"),
    *fan((State.SCHEDULED, State.RETRYING), (State.QUEUED,), "sent"),
    Arrow(State.SCHEDULED, None, "sent, and not tracked"),
)

_ENVELOPES = ("id", "kind", "queue", "priority", "version", "payload", "embed", "key", "tenant", "traceparent")
_READ = [jobs.c[name] for name in (*_ENVELOPES, "failures", "fence", "enqueued_at", "due_at", "expires_at")]
"""What an envelope is made of; a row has twice as many columns."""


def schedule(database: Database, envelopes: Iterable[Envelope]) -> None:
    """Keep jobs until they are due. One that the ledger has already stays as it is.

    Raises:
        UndecodableMessage: an envelope cannot be kept; nothing was written. LedgerUnavailable: likewise.
    """
    keep(database, [waiting(envelope) for envelope in envelopes])


def keep(database: Database, rows: Sequence[Row]) -> None:
    """`schedule` of rows that `waiting` has made."""
    names = ("id", "kind", "key", "tenant", "enqueued_at")
    about: list[Any] = [tuple(row[name] for name in names) for row in rows if row["key"] is not None]

    def insert_waiting(connection: sa.Connection) -> None:
        # The first dispatcher that sees an overdue job sends it, so a cancelled one must not wait even for a moment.
        gone = cancelled_before(connection, database, about) if about else ()
        cancelled = final_columns(State.CANCELLED, datetime.now(UTC))
        kept = [{**row, **cancelled} if row["id"] in gone else row for row in rows]
        connection.execute(database.insert_ignore(jobs), kept)

    if rows:
        database.write(insert_waiting)
        # A cancellation of a key meanwhile may not have seen these. A crash in between brings the messages again, and
        # this check with them.
        if about:
            cancel_unseen(database, about)


def due(
    connection: sa.Connection, database: Database, now: datetime, limit: int, exclude: Iterable[str] = ()
) -> list[Any]:
    """Rows whose time has come, the longest overdue first, locked against other dispatchers.

    Arguments:
        limit: of each state, scheduled and retrying, so that a flood of one does not starve the other.
        exclude: queues to leave out.
    """
    rows: list[Any] = []
    for state in sorted(WAITING):
        select = _due(state, now)
        if exclude:
            select = select.where(jobs.c.queue.not_in(list(exclude)))
        rows += connection.execute(database.locked(select.limit(limit), skip=True)).all()
    return sorted(rows, key=lambda row: row.due_at)


def envelope_of(row: Any) -> Envelope:
    """The envelope of a waiting row's next attempt."""
    # Its worker may know this kind as one with track=False, and would not claim, nor end, what carries no fence.
    fence = row.fence if registry.find(row.kind) is not None else max(row.fence, 1)
    return seal(
        row.kind,
        row.version,
        body_of_row(row),
        row.id,
        row.queue,
        row.priority,
        attempt=row.failures + 1,
        fence=fence,
        key=row.key,
        tenant=row.tenant,
        sent_at=row.enqueued_at,
        expires_at=row.expires_at,
        traceparent=row.traceparent,
    )


def reserve(database: Database, limit: int, exclude: Iterable[str]) -> tuple[list[Any], datetime]:
    """Due rows, and until when they are this dispatcher's."""
    now, any_due = database.read(_peek)
    until = now + RESERVED
    if not any_due:
        return [], until  # looking takes no lock; on SQLite, polling would otherwise fight workers for the only one

    def move_ahead(connection: sa.Connection) -> list[Any]:
        rows = due(connection, database, now, limit, exclude)
        if rows:
            ids = [row.id for row in rows]
            connection.execute(sa.update(jobs).where(database.among(jobs.c.id, ids)).values(due_at=until))
        return rows

    return database.write(move_ahead), until


def _peek(connection: sa.Connection) -> tuple[datetime, bool]:
    """The time, and whether anything is due by it."""
    # The database's clock, as for retries; ahead by the fraction that SQLite's clock leaves out.
    now = connection.execute(sa.select(from_now(timedelta(milliseconds=1)))).scalar_one()
    firsts = [_due(state, now).with_only_columns(jobs.c.id).limit(1) for state in WAITING]
    return now, any(connection.execute(first).first() for first in firsts)


def _due(state: State, now: datetime) -> sa.Select[Any]:
    """Query for one state, in the order of the index on (state, due_at): the LIMIT then ends the scan early, whatever a
    planner believes about the rest of the table."""
    return sa.select(*_READ).where(jobs.c.state == state, jobs.c.due_at <= now).order_by(jobs.c.due_at)


def mark_as_sent(database: Database, rows: Sequence[Any], until: datetime, began: float) -> None:
    kept = [row.id for row in rows if _is_kept(row)]
    gone = [row.id for row in rows if not _is_kept(row)]

    def mark(connection: sa.Connection) -> None:
        if kept:
            mark_sent(connection, database, kept, until, began)
        if gone:
            connection.execute(sa.delete(jobs).where(reserved(database, gone, until)))

    database.write(mark)


def _is_kept(row: Any) -> bool:
    """`track=False` keeps only failures: a delayed job without any leaves the ledger when the broker has it, because
    the worker that runs it writes nothing."""
    kind = registry.find(row.kind)
    return kind is None or kind.track or row.fence > 0 or row.failures > 0


def release(database: Database, rows: Sequence[Any], until: datetime) -> None:
    def restore_due_times(connection: sa.Connection) -> None:
        for row in rows:
            where = reserved(database, [row.id], until)
            connection.execute(sa.update(jobs).where(where).values(due_at=row.due_at))

    database.write(restore_due_times)
