"""The rates: how many attempts ended, how, and how long they waited and ran."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import NAME, metadata
from penstock.ledger.sql.types import UtcDateTime

rates = sa.Table(
    "penstock_rates",
    metadata,
    # Minutes that the row is about, from `minute` on. 0: one minute, of one source; dispatchers add such rows to those
    # of the other spans, which have no source. Negative: the same for all kinds and queues together.
    sa.Column("span", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("minute", sa.Integer, primary_key=True, autoincrement=False),  # since 1970, in UTC
    # A hash of the next three, since some databases treat "A" and "a" as equal.
    sa.Column("cell", sa.String(32), primary_key=True),
    sa.Column("source", NAME, primary_key=True),  # the worker, or an id of a single write
    sa.Column("kind", NAME, nullable=False),
    sa.Column("queue", NAME, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("run_ms", sa.BigInteger, nullable=False),  # sum over those that ran
    sa.Column("wait_ms", sa.BigInteger, nullable=False),  # likewise, from when each was enqueued, or due, to its start
    sa.Column("run", sa.LargeBinary),  # histogram; None: none ran
    sa.Column("wait", sa.LargeBinary),
    sa.Column("written_at", UtcDateTime, nullable=False),
    sa.Index(None, "kind", "span", "minute"),
    sa.Index(None, "queue", "span", "minute"),
)
