"""Burying: every way in which a job becomes dead ends here, with the insertion of its dead letter.

- A message that cannot become a job: `bury_message`.
- A job whose worker died, and that nothing may run again: `bury_crashed`, which `abandoned` calls.
- A job whose attempt failed for good (`outcome`), and a workflow that failed (`workflow_end`): they set the state with
  what else changes, and call `bury`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import UndecodableMessage
from penstock.ledger.rows import dead_letters as dead_letter
from penstock.ledger.rows.arrows import fan
from penstock.ledger.rows.attempts import crashed_attempt
from penstock.ledger.rows.ended import announce_ends, final_columns
from penstock.ledger.rows.jobs import Row, waiting, waiting_row
from penstock.ledger.rows.text import storable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, dead_letters, jobs
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Envelope, is_id
from penstock.schemas.wire.ids import new_id

ARROWS = fan((None, State.SCHEDULED, State.QUEUED), (State.DEAD,), "its message is unreadable, or was given up")

_OVERWRITTEN = frozenset({State.SCHEDULED, State.QUEUED})
"""States of a job whose message turned out unreadable. In any other the message is a copy, and the job goes on."""


def bury(connection: sa.Connection, database: Database, rows: Sequence[Row]) -> None:
    """Insert the dead letters of jobs that die in this transaction.

    Arguments:
        rows: as `rows.dead_letters` makes them; a dead letter replaces an earlier one of its job.
    """
    if rows:
        connection.execute(database.upsert(dead_letters), list(rows))


def bury_message(database: Database, envelope: Envelope, raw: bytes, reason: str, detail: str) -> str:
    """Keep a message that cannot become a job. Returns the dead letter's id: the job's if it has one.

    The job shows as dead from then on. The same message buried twice, as after a crash before its acknowledgement, is
    kept once.

    Arguments:
        raw: the bytes as they came; kept where there are no headers, else the body is.
        reason: `undecodable`, `unknown_kind`, `invalid_payload`, `unknown_version`, `unsupported`, `no_handler` or
            `delivery_limit`.

    Raises:
        LedgerUnavailable: nothing was written.
    """
    return database.write(lambda connection: _bury_message(connection, database, envelope, raw, reason, detail))


def bury_crashed(connection: sa.Connection, database: Database, row: Any, reason: str, error: str) -> None:
    """End a job that ran under a worker that died, as dead; in a transaction of the caller's.

    Arguments:
        row: the job's whole row, locked.
    """
    now = datetime.now(UTC)
    change = final_columns(State.DEAD, now, error=error, worker=None, fence=row.fence + 1, crashes=row.crashes + 1)
    connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**change))
    announce_ends(connection, database, [row.id])
    connection.execute(database.insert_ignore(attempts), [crashed_attempt(row, now, error)])
    kept = dead_letter.of_job(
        row.id, row.kind, row.queue, reason=reason, detail=error, error=f"{reason}: {error}", created_at=now
    )
    bury(connection, database, [kept])


def _bury_message(
    connection: sa.Connection, database: Database, envelope: Envelope, raw: bytes, reason: str, detail: str
) -> str:
    now = datetime.now(UTC)
    headers = envelope.headers
    kept = dead_letter.unread(
        new_id(),
        headers,
        envelope.queue,
        envelope.body if headers else raw,
        reason=reason,
        detail=detail,
        created_at=now,
    )
    if is_id(headers.get("id")):
        job_id = headers["id"]
        state = connection.execute(database.locked(sa.select(jobs.c.state).where(jobs.c.id == job_id))).scalar()
        earlier = connection.execute(
            sa.select(dead_letters.c.raw, dead_letters.c.replayed_at).where(dead_letters.c.id == job_id)
        ).first()
        if earlier is not None and earlier.replayed_at is None and earlier.raw == kept["raw"]:
            return str(job_id)
        if state is None or state in _OVERWRITTEN:
            kept["id"] = job_id
            change = final_columns(State.DEAD, now, error=kept["detail"])
            if state is not None:
                connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**change))
                announce_ends(connection, database, [job_id])
            elif kept["kind"] is not None:
                connection.execute(database.insert_ignore(jobs), [_row_of(envelope, now) | change])
    bury(connection, database, [kept])
    return str(kept["id"])


def _row_of(envelope: Envelope, now: datetime) -> Row:
    """As much of a job as can be read of a message, so that its handle finds it."""
    try:
        return waiting(envelope)
    except UndecodableMessage:
        kind = str(envelope.kind)[:128].replace("\0", "").encode(errors="replace").decode()
        kind_known = registry.find(kind)
        body = b"[[],{},null]"
        queue = kind_known.queue if kind_known else (storable(envelope.queue, 128) or "")
        return waiting_row(Envelope(queue, "normal", {"id": envelope.id, "task": kind}, body), now)
