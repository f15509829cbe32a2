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
from penstock.ledger.rows.ended import announce_ends, count_rows, final_columns
from penstock.ledger.rows.jobs import ID_TAKEN, IDENTITY, Row, is_another, waiting, waiting_row
from penstock.ledger.rows.rates.counting import OTHER_KIND, count_ends
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, dead_letters, jobs
from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import HEADER, Envelope, is_id
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
    """Keep a message that cannot become a job. Returns the dead letter's id: the job's if the message has it.

    The job shows as dead from then on. The same message buried twice, as after a crash before its acknowledgement, is
    kept once. A message with the id of another job is kept under an id of its own, and that job stays as it is.

    Arguments:
        raw: the bytes as they came; kept if the message has no headers, else its body is kept.
        reason: `undecodable`, `too_large`, `unknown_kind`, `invalid_payload`, `unknown_version`, `unsupported`,
            `no_handler`, `not_configured`, `id_taken` or `delivery_limit`.

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
    count_rows(connection, Outcome.DEAD, [row])
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
    if is_id(headers.get("id")) and reason != ID_TAKEN:
        job_id = headers["id"]
        select = sa.select(jobs.c.state, *IDENTITY).where(jobs.c.id == job_id)
        job = connection.execute(database.locked(select)).first()
        state = None if job is None else job.state
        earlier = connection.execute(
            sa.select(dead_letters.c.raw, dead_letters.c.replayed_at).where(dead_letters.c.id == job_id)
        ).first()
        if earlier is not None and earlier.replayed_at is None and earlier.raw == kept["raw"]:
            return str(job_id)
        if state is None or (state in _OVERWRITTEN and not has_id_of_another(job, envelope)):
            kept["id"] = job_id
            change = final_columns(State.DEAD, now, error=storable(kept["detail"], LONGEST_ERROR))
            if state is not None:
                connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**change))
                announce_ends(connection, database, [job_id])
            elif kept["kind"] is not None:
                connection.execute(database.insert_ignore(jobs), [_row_of(envelope, now) | change])
    bury(connection, database, [kept])
    declared = registry.find(envelope.kind)  # strangers may name kinds as they like
    count_ends(connection, Outcome.DEAD, {(OTHER_KIND if declared is None else declared.name, envelope.queue): 1})
    return str(kept["id"])


def has_id_of_another(job: Any, envelope: Envelope) -> bool:
    """Whether the job on record is another than that of a message, as far as the headers of the message say.

    Arguments:
        job: has the columns of `IDENTITY`.
    """
    ours = envelope.headers.get(HEADER)
    tenant = ours.get("tenant") if isinstance(ours, dict) else None
    return is_another(job, envelope.kind, registry.find(envelope.kind), tenant, envelope.queue)


def _row_of(envelope: Envelope, now: datetime) -> Row:
    """Row of a job, with as much as can be read from its message, so that its handle finds it."""
    try:
        return waiting(envelope)
    except UndecodableMessage:
        kind = storable(str(envelope.kind), 128)
        kind_known = registry.find(kind)
        body = b"[[],{},null]"
        queue = kind_known.queue if kind_known else (storable(envelope.queue, 128) or "")
        return waiting_row(Envelope(queue, "normal", {"id": envelope.id, "task": kind}, body), now)
