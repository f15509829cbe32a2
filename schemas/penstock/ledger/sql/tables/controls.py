"""Changes by operators at run time: pauses, the concurrency and weight of queues, the numbers of limits."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import NAME, metadata
from penstock.ledger.sql.types import LongText, Text, UtcDateTime

controls = sa.Table(
    "penstock_controls",
    metadata,
    sa.Column("scope", sa.String(16), primary_key=True),  # all, queue, kind, limit
    sa.Column("name", NAME, primary_key=True),  # of the queue, kind or limit; empty for all
    sa.Column("what", sa.String(16), primary_key=True),  # pause, concurrency, weight, limit
    sa.Column("value", sa.Integer),  # of a concurrency, a weight or a limit
    sa.Column("actor", Text(255), nullable=False),
    sa.Column("reason", LongText),
    sa.Column("since", UtcDateTime, nullable=False),
    sa.Column("until", UtcDateTime),  # on the database's clock; past: it has ended, and its jobs are being woken
)
