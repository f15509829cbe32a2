"""Later messages of adopted tasks, under the id of a job that has ended.

Celery runs each message. A task that others replace has ended, and the last of these has its id; and an application may
send a signature twice, whose id is fixed. Both go on in the row of the job. A copy of a message is not a later one: it
was sent at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.jobs import message_row
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Message

GOES_ON = (State.SUCCEEDED, State.DISCARDED, State.DEAD)
"""Final states from which a later message starts a job again. One that was cancelled stays so."""

_OF_MESSAGE = ("kind", "queue", "priority", "delivery", "version", "payload", "embed", "enqueued_at", "expires_at")


def may_follow(message: Message, row: Any) -> bool:
    """Whether a message may be a later one of the job of this row, which has `IDENTITY` and `enqueued_at`.

    Only one adopted task follows another, and only of the same tenant: an id that is reused gives no one the job of
    another.
    """
    return (
        issubclass(message.kind.job, AdoptedJob)
        and message.fence == 0
        and message.sent_at is not None
        and message.sent_at != row.enqueued_at
        and message.tenant == row.tenant
        and (kind := registry.find(row.kind)) is not None
        and issubclass(kind.job, AdoptedJob)
    )


def go_on(connection: sa.Connection, database: Database, messages: Sequence[Message], now: datetime) -> None:
    """Write these messages into the rows of their jobs, which are claimed."""
    rows = [message_row(message, now) for message in messages]
    database.execute_many(
        connection, _GO_ON, [{"b_id": row["id"]} | {f"b_{name}": row[name] for name in _OF_MESSAGE} for row in rows]
    )


_GO_ON = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"))
    .values(
        {name: sa.bindparam(f"b_{name}") for name in _OF_MESSAGE} | {"error": None, "result": None, "result_ref": None}
    )
)
