"""The jobs of an outbox's batch in the ledger: recorded, and released again where the broker is unavailable."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import sqlalchemy as sa

from penstock.ledger.outbox.batch import OutboxBatch
from penstock.ledger.rows.ended import final_columns
from penstock.ledger.rows.jobs import Row, release_reserved, reserved
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.cancel import cancelled_before
from penstock.ledger.transitions.enqueue import Admissions
from penstock.schemas.states import State

log = logging.getLogger("penstock.dispatcher")


def record_jobs(connection: sa.Connection, ledger: Database, batch: OutboxBatch) -> None:
    """Decode the batch, record its jobs, and note in the batch which of them must be sent."""
    batch.decode_rows()
    keyed = batch.keyed_jobs()
    cancelled = cancelled_before(connection, ledger, keyed) if keyed else set()
    rows: list[Row] = []
    for entry in batch.entries:
        is_cancelled = entry.envelope.id in cancelled
        if entry.row is not None and (entry.policy is None or is_cancelled):
            if is_cancelled:
                entry.row |= final_columns(State.CANCELLED, datetime.now(UTC))
            rows.append(entry.row)
    if rows:
        new = ledger.execute_many(connection, ledger.insert_ignore(jobs), rows)
        batch.plain = [row["id"] for row in rows if row["due_at"] == batch.until]
        if new < len(rows):
            batch.plain = _reserve_again(connection, ledger, batch)
    requests = [
        (entry.envelope, entry.policy)
        for entry in batch.entries
        if entry.policy is not None and entry.envelope.id not in cancelled
    ]
    if requests:
        admissions = Admissions.admit(connection, ledger, requests, batch.now, batch.until)
        batch.unique = [job_id for job_id, row in admissions.new.items() if row["due_at"] == batch.until]
        for (envelope, _), admission in zip(requests, admissions.answers, strict=True):
            if not admission.created and admission.job_id != envelope.id:
                log.info("job %s is not sent: job %s stands for its key", envelope.id, admission.job_id)


def _reserve_again(connection: sa.Connection, ledger: Database, batch: OutboxBatch) -> list[str]:
    """Reserve the jobs to send if the ledger had some of the batch before. Returns their ids.

    A job that still waits there as it was recorded is sent: a dispatcher died before it sent it, or the caller has used
    an id twice.
    """
    untouched = (jobs.c.state == State.SCHEDULED, jobs.c.fence == 0, jobs.c.failures == 0, jobs.c.due_at <= batch.until)
    reserve = sa.update(jobs).where(ledger.among(jobs.c.id, batch.plain), *untouched)
    connection.execute(reserve.values(due_at=batch.until))
    select = sa.select(jobs.c.id).where(reserved(ledger, batch.plain, batch.until))
    return list(connection.execute(select).scalars())


def release_jobs(connection: sa.Connection, ledger: Database, batch: OutboxBatch) -> None:
    """Undo the record of jobs that were not sent.

    Plain jobs are deleted: the outbox keeps them, in its order. Unique jobs stay, because their key was granted, and
    are due at once.
    """
    if batch.plain:
        # A worker may have some of them, because some were sent: those are not waiting any more.
        unsent = sa.and_(reserved(ledger, batch.plain, batch.until), jobs.c.fence == 0)
        connection.execute(sa.delete(jobs).where(unsent))
    if batch.unique:
        release_reserved(connection, ledger, batch.unique, batch.until)
