"""Jobs that died, and the calls that replay them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from support.ledgers import (
    Note,
    claimed,
    end,
    letter_of,
    message,
    row_of,
)

from penstock.ledger.queries import dead_letters as deadletters
from penstock.ledger.queries.dead_letters import Selection
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs, metadata
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.bury import bury_message
from penstock.schemas import Job, Outcome
from penstock.schemas.wire.codec import Envelope
from penstock.schemas.wire.ids import new_id

TRACE = 'Traceback (most recent call last):\n  File "/app/acme/{}.py", line 7, in send\nValueError: no\n'


def die(ledger: Database, job: Job, error: str = "ValueError: no", trace: str | None = None, **options: Any) -> str:
    sent = message(job, **options)
    end(ledger, claimed(ledger, sent), Outcome.DEAD, error=error, traceback=trace, reason="failed")
    return sent.id


def bury(ledger: Database, envelope: Envelope, reason: str) -> str:
    return bury_message(ledger, envelope, envelope.body, reason, "because")


def ids(ledger: Database, **chosen: Any) -> list[str]:
    return [row.id for row in deadletters.find(ledger, Selection(**chosen))]


def replay(ledger: Database, *named: str, **options: Any) -> list[replays.ReplayResult]:
    return replays.replay(ledger, Selection(ids=named), actor="ada", **options)


def everything(ledger: Database) -> dict[str, list[Any]]:
    """All rows of all tables."""

    def read_tables(connection: sa.Connection) -> dict[str, list[Any]]:
        return {
            table.name: list(connection.execute(sa.select(table).order_by(*table.primary_key)))
            for table in metadata.sorted_tables
        }

    return ledger.read(read_tables)


def many(ledger: Database, number: int) -> list[str]:
    """Ids of that many dead jobs of one group, the oldest first."""
    sent = message(Note())
    end(ledger, claimed(ledger, sent), Outcome.DEAD, error="ValueError: no", reason="failed")
    job, letter = row_of(ledger, sent.id)._asdict(), letter_of(ledger, sent.id)._asdict()
    new = sorted(new_id() for _ in range(number))
    at = datetime.now(UTC)

    def insert_dead_jobs(connection: sa.Connection) -> None:
        connection.execute(sa.delete(jobs))
        connection.execute(sa.delete(dead_letters))
        connection.execute(ledger.insert(jobs), [job | {"id": job_id} for job_id in new])
        late = [
            letter | {"id": dead_letter_id, "created_at": at + timedelta(milliseconds=n)}
            for n, dead_letter_id in enumerate(new)
        ]
        connection.execute(ledger.insert(dead_letters), late)

    ledger.write(insert_dead_jobs)
    return new
