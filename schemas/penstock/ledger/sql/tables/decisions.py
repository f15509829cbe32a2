"""Decisions of people: dead letters, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import ID, NAME, metadata
from penstock.ledger.sql.types import LongBytes, LongerText, LongText, Text, UtcDateTime

dead_letters = sa.Table(
    "penstock_dead_letters",
    metadata,
    sa.Column("id", ID, primary_key=True),  # the job's id; a new one for bytes without an id
    sa.Column("kind", NAME),
    sa.Column("queue", NAME, nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", LongerText, nullable=False),
    sa.Column("fingerprint", sa.String(32), nullable=False),  # equal for dead letters with the same error
    sa.Column("headers", LongText),  # as JSON; for a message that never became a job
    sa.Column("raw", LongBytes),  # likewise
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("replayed_at", UtcDateTime),
    sa.Column("discarded_at", UtcDateTime),  # None, like replayed_at: it waits for a decision
    sa.Index("ix_penstock_dead_letters_open", "replayed_at", "discarded_at", "created_at"),
    sa.Index(None, "fingerprint", "created_at"),
)

audit = sa.Table(
    "penstock_audit",
    metadata,
    sa.Column("id", ID, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("actor", Text(255), nullable=False),  # the person or program that acted
    sa.Column("act", sa.String(32), nullable=False),
    sa.Column("subject_kind", sa.String(32), nullable=False),  # `job`, `dead letter`, `queue`, …
    sa.Column("subject", Text(255)),  # its id or name; None: many subjects, or described in the detail
    sa.Column("count", sa.Integer, nullable=False),  # number of subjects
    sa.Column("detail", LongText, nullable=False),  # JSON object; never holds values of a payload
    sa.Index(None, "at", "id"),
    sa.Index(None, "actor", "at", "id"),
    sa.Index(None, "act", "at", "id"),
    sa.Index(None, "subject"),
)

audit_subjects = sa.Table(
    "penstock_audit_subjects",
    metadata,
    sa.Column("subject", ID, primary_key=True),
    sa.Column("audit_id", ID, primary_key=True),  # of an act with many subjects
)
