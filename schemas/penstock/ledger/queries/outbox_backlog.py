"""Backlog of an outbox: how many jobs wait there, and for how long. It only grows while the broker is down."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox


@dataclass(frozen=True, slots=True)
class Backlog:
    """Rows of an outbox that are committed and not sent.

    Attributes:
        jobs: how many; those that a dispatcher is sending right now count.
        lag: how long the first of them has been there; zero where there is none.
    """

    jobs: int
    lag: timedelta


def backlog(database: Database) -> Backlog:
    """Backlog of the outbox in a database.

    Raises:
        LedgerUnavailable: the database cannot be reached, or has no outbox.
    """

    def read_backlog(connection: sa.Connection) -> Backlog:
        count = connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()
        first = sa.select(outbox.c.created_at, from_now().label("now")).order_by(outbox.c.position).limit(1)
        row = connection.execute(first).first()
        # The application's clock may be ahead of the database's.
        return Backlog(count, timedelta() if row is None else max(row.now - row.created_at, timedelta()))

    return database.read(read_backlog)
