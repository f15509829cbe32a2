"""Jobs that wait in the ledger for their time, as a worker of their queues lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.sql.text import storable
from penstock.schemas.states import WAITING

_COLUMNS = [jobs.c[name] for name in ("id", "kind", "queue", "priority", "payload", "due_at")]


def find_waiting(
    database: Database, queues: Sequence[str], *, ids: Sequence[str] | None = None, limit: int
) -> Sequence[Any]:
    """Jobs of these queues that are not due, by their due time, the first one first.

    Rows have `id`, `kind`, `queue`, `priority`, `payload` and `due_at`.

    Arguments:
        ids: only these jobs; None: all.
        limit: the most rows.

    Raises:
        LedgerUnavailable: the database cannot be reached.
    """
    where = [database.among(jobs.c.queue, list(queues)), jobs.c.due_at.is_not(None)]
    if ids is not None:
        where.append(database.among(jobs.c.id, list(map(storable, ids))))

    def read_rows(connection: sa.Connection) -> list[Any]:
        rows: list[Any] = []
        for state in sorted(WAITING):  # one by one, so that the index of due jobs has them in order
            select = sa.select(*_COLUMNS).where(jobs.c.state == state, *where).order_by(jobs.c.due_at).limit(limit)
            rows += connection.execute(select)
        return sorted(rows, key=lambda row: row.due_at)[:limit]

    return database.read(read_rows)
