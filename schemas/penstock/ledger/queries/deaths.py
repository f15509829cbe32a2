"""Deaths on record, for those who report them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs


@dataclass(frozen=True, slots=True)
class Death:
    """A dead letter, with what is known of its job.

    Attributes:
        id: the job's, or that of the dead letter of a message without one.
        kind: None: not even that could be read.
        attempt: number of the last attempt; 0: there was none.
        detail: the error, and why it is the end.
    """

    id: str
    kind: str | None
    queue: str
    tenant: str | None
    attempt: int
    reason: str
    detail: str
    fingerprint: str
    traceparent: str | None


def deaths_of(database: Database, ids: Sequence[str]) -> list[Death]:
    """The deaths of these jobs, as they are on record; one that was replayed meanwhile is not there.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    of_dead_letter = [dead_letters.c[name] for name in ("id", "kind", "queue", "reason", "detail", "fingerprint")]
    of_job = [jobs.c.tenant, sa.func.coalesce(jobs.c.attempt, 0).label("attempt"), jobs.c.traceparent]
    both = dead_letters.outerjoin(jobs, jobs.c.id == dead_letters.c.id)
    select = sa.select(*of_dead_letter, *of_job).select_from(both)
    select = select.where(database.among(dead_letters.c.id, ids), dead_letters.c.replayed_at.is_(None))
    rows = database.read(lambda connection: connection.execute(select).all()) if ids else []
    return [Death(**row._mapping) for row in rows]
