"""The schedules, and when they fired."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import ID, NAME, metadata
from penstock.ledger.sql.types import LongerText, LongText, Text, UtcDateTime

schedules = sa.Table(
    "penstock_schedules",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("source", sa.String(8), nullable=False),  # `file`, `code` or `made` (at run time)
    sa.Column("module", Text(255)),  # of `code`: the one that declares it
    sa.Column("rule", LongText, nullable=False),  # the definition as JSON; dispatchers fire by it alone
    sa.Column("next_at", UtcDateTime),  # None: it does not fire
    sa.Column("due_at", UtcDateTime),  # next_at plus jitter; None also while paused
    sa.Column("last_at", UtcDateTime),
    sa.Column("last_job_id", ID),
    sa.Column("waiting_at", UtcDateTime),  # the time whose job waits until the last one ends
    sa.Column("paused_at", UtcDateTime),
    sa.Column("error", LongerText),
    sa.Index(None, "due_at"),
    sa.Index(None, "waiting_at"),
)

firings = sa.Table(
    "penstock_firings",
    metadata,
    sa.Column("schedule", NAME, primary_key=True),
    sa.Column("fire_at", UtcDateTime, primary_key=True),  # unique with the schedule: nothing fires twice
    sa.Column("cause", sa.String(16), nullable=False, default="time"),  # or `run` or `backfill`, by a person
    sa.Column("job_id", ID),
    sa.Column("fired_at", UtcDateTime, nullable=False),
    sa.Column("skipped", sa.String(32)),  # reason why no job was made
)
