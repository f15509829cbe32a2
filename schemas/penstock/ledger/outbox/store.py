"""The transactions that move the jobs of an outbox into the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.outbox.batch import OutboxBatch, OutboxEntry
from penstock.ledger.outbox.record import record_jobs, release_jobs
from penstock.ledger.outbox.rows import NOW, delete_row, delete_rows, has_free_rows, release_rows, take_rows
from penstock.ledger.rows.jobs import mark_sent
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.cancel import cancel_unseen
from penstock.schemas.wire.ids import new_id


class OutboxStore:
    """An outbox and the ledger: one transaction where both are in one database, else one after the other.

    Attributes:
        last_rows: the rows of the last `take`, also where that raised.
    """

    def __init__(self, database: Database, ledger: Database) -> None:
        self._database, self._ledger = database, ledger
        self.last_rows: Sequence[Any] = ()

    def has_rows(self) -> bool:
        """Whether there is anything to take."""
        return self._database.read(has_free_rows)

    def take(self, limit: int, exclude: Sequence[str]) -> OutboxBatch:
        """Take a batch and record its jobs in the ledger.

        Arguments:
            limit: rows.
            exclude: queues to leave out.
        """
        token = new_id()

        def take_batch(connection: sa.Connection) -> OutboxBatch:
            rows, more = take_rows(connection, self._database, token, limit, exclude)
            self.last_rows = rows
            return OutboxBatch(token, rows[0].now if rows else datetime.now(UTC), rows, more)

        def take_and_record(connection: sa.Connection) -> OutboxBatch:
            batch = take_batch(connection)
            record_jobs(connection, self._ledger, batch)
            return batch

        if self._database is self._ledger:
            return self._database.write(take_and_record)
        batch = self._database.write(take_batch)
        return self._record(batch) if batch.rows else batch

    def _record(self, batch: OutboxBatch) -> OutboxBatch:
        try:
            now = self._ledger.read(lambda connection: connection.execute(sa.select(NOW)).scalar_one())

            def record(connection: sa.Connection) -> OutboxBatch:
                timed = OutboxBatch(batch.token, now, batch.rows, batch.more)
                record_jobs(connection, self._ledger, timed)
                return timed

            return self._ledger.write(record)
        except Exception:
            self._database.write(lambda connection: release_rows(connection, self._database, batch.token, batch.rows))
            raise

    def cancel_unseen(self, batch: OutboxBatch) -> set[str]:
        """Cancel the jobs whose key was cancelled before they were recorded. Returns their ids."""
        keyed = batch.keyed_jobs()
        return cancel_unseen(self._ledger, keyed) if keyed else set()

    def mark_sent(self, batch: OutboxBatch, entries: Sequence[OutboxEntry], began: float) -> None:
        """Mark the jobs as sent, and delete the batch from the outbox.

        Arguments:
            entries: those that were sent.
            began: what `time.monotonic()` said before the sending.
        """
        ids = [entry.envelope.id for entry in entries if entry.row is not None]

        def mark_jobs(connection: sa.Connection) -> None:
            if ids:
                mark_sent(connection, self._ledger, ids, batch.until, began)

        def delete_batch(connection: sa.Connection) -> None:
            delete_rows(connection, self._database, batch.token, batch.rows)

        self._write_both(mark_jobs, delete_batch)

    def give_back(self, batch: OutboxBatch, entries: Sequence[OutboxEntry]) -> None:
        """Undo `take` for jobs that could not be sent: the outbox keeps them, in its order.

        A job that waits in the ledger for another reason (a delay, a key that was granted) stays there, and the service
        of due jobs sends it.

        Arguments:
            entries: those that were not sent.
        """
        kept = {entry.position for entry in entries if entry.policy is None}

        def undo_record(connection: sa.Connection) -> None:
            release_jobs(connection, self._ledger, batch)

        def release_batch(connection: sa.Connection) -> None:
            delete_rows(
                connection, self._database, batch.token, [row for row in batch.rows if row.position not in kept]
            )
            release_rows(connection, self._database, batch.token, [row for row in batch.rows if row.position in kept])

        self._write_both(undo_record, release_batch)

    def delete(self, row: Any) -> None:
        """Delete a row, also if another dispatcher has taken it."""
        self._database.write(lambda connection: delete_row(connection, row.position))

    def _write_both(
        self, write_ledger: Callable[[sa.Connection], None], write_outbox: Callable[[sa.Connection], None]
    ) -> None:
        """Write to the ledger, then to the outbox."""

        def write_both(connection: sa.Connection) -> None:
            write_ledger(connection)
            write_outbox(connection)

        if self._database is self._ledger:
            self._database.write(write_both)
        else:
            self._ledger.write(write_ledger)
            self._database.write(write_outbox)
