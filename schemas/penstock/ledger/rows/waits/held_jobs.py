"""Jobs that a worker does not know, held back for workers that do: each has a row here, and its own row is `scheduled`.

A row here counts as long as its job has the fence in this row: a job that was claimed meanwhile begins again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import held_jobs as held

_SHORTEST, _LONGEST = timedelta(seconds=1), timedelta(seconds=5)


class Holds:
    """Holds of a batch of jobs, as they are on record.

    Arguments:
        now: on the database's clock.
        grace: how long a job is held back from now on, if it is not yet.
    """

    def __init__(
        self, connection: sa.Connection, database: Database, ids: Sequence[str], now: datetime, grace: timedelta
    ) -> None:
        self._connection, self._database, self._now, self._grace = connection, database, now, grace
        select = sa.select(held).where(database.among(held.c.job_id, ids))
        self._known = {row.job_id: row for row in connection.execute(select)}
        self._rows: list[Row] = []

    def hold(self, job_id: str, fence: int, worker: str, reason: str, detail: str) -> datetime | None:
        """Hold a job back. Returns when it is to be tried again; None: its grace is over."""
        row = self._known.get(job_id)
        if row is not None and row.fence == fence:
            since, until = row.since, row.until
        else:
            since, until = self._now, self._now + self._grace
        if until <= self._now:
            return None
        # Longer each time, so that a deploy of seconds costs seconds, and one of minutes not a storm of messages.
        due_at: datetime = min(self._now + min(max(self._now - since, _SHORTEST), _LONGEST), until)
        texts = {"worker": worker, "reason": reason, "detail": detail}
        self._rows.append({"job_id": job_id, "fence": fence, **texts, "since": since, "until": until, "due_at": due_at})
        return due_at

    def write(self) -> None:
        if self._rows:
            rows = sorted(self._rows, key=lambda row: str(row["job_id"]))
            self._connection.execute(self._database.upsert(held), rows)


def find(connection: sa.Connection, job: Any) -> Any:
    """The row of a job that is held back, or was sent again since; None: no worker has held it back.

    Arguments:
        job: a row with `id` and `fence`.
    """
    where = held.c.job_id == job.id, held.c.fence == job.fence
    return connection.execute(sa.select(held).where(*where)).first()
