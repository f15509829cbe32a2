"""Rows and outcomes of unique jobs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from support.ledgers import claimed, end
from support.unique_jobs import Existing, Reject, Replace

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.producers import JobHandle
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome
from penstock.schemas.wire.codec import decode

HOUR = timedelta(hours=1)


KINDS: list[type[Job]] = [Reject, Existing, Replace]


def run(ledger: Database, sender: MemoryBroker, handle: JobHandle, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Play the worker that gets a job's message."""
    [envelope] = [envelope for envelope in sender.sent if envelope.id == handle.id]
    end(ledger, claimed(ledger, decode(envelope)), outcome)


def rows(ledger: Database) -> list[Any]:
    return ledger.read(lambda connection: list(connection.execute(sa.select(jobs).order_by(jobs.c.id))))
