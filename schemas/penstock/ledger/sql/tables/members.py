"""The workers and dispatchers."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import NAME, metadata
from penstock.ledger.sql.types import UtcDateTime

workers = sa.Table(
    "penstock_workers",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("engine", sa.String(16), nullable=False),
    sa.Column("host", NAME, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("queues", sa.Text, nullable=False),  # JSON list
    sa.Column("left_queues", sa.Text),  # JSON list: those that it was told to stop consuming
    sa.Column("kinds", sa.Text, nullable=False),  # JSON object: kind -> queue
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("lease_until", UtcDateTime, nullable=False),  # covers all jobs that it runs
    sa.Column("peak_memory_bytes", sa.BigInteger),  # resident, as of the last heartbeat
    sa.Column("stopped_at", UtcDateTime),
    sa.Column("ended", sa.String(32)),  # exit reported by its supervisor, such as SIGKILL
    sa.Column("version", sa.String(32)),  # of Penstock
    sa.Column("concurrency", sa.Integer),  # attempts at a time, as of the last heartbeat; of a dispatcher: None
    sa.Column("pool_pids", sa.Text),  # JSON list: the processes of its pool, as of the last heartbeat
    sa.Column("draining_at", UtcDateTime),  # it takes no more jobs since then
    sa.Column("ordered", sa.String(8)),  # `drain` or `stop`, by a person; it obeys at its next heartbeat
)
