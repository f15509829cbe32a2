"""The gateway's keys, and requests that may come twice."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import metadata
from penstock.ledger.sql.types import LongText, Text, UtcDateTime

api_keys = sa.Table(
    "penstock_api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),  # the public part of a key
    sa.Column("digest", sa.String(64), nullable=False),  # SHA-256 of the whole key, which is not stored
    sa.Column("name", Text(200), nullable=False),
    sa.Column("kinds", sa.Text),  # JSON list of patterns; None: all
    sa.Column("queues", sa.Text),  # likewise
    sa.Column("tenants", sa.Text),  # JSON list of names; None: all tenants, and jobs without one
    sa.Column("verbs", sa.Text),  # JSON list of `Verb`; None: all
    sa.Column("requests_per_second", sa.Float),  # None: as the settings say
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
)

requests = sa.Table(
    "penstock_requests",
    metadata,
    # Requests to the gateway with an Idempotency-Key, so that repeating one is harmless.
    sa.Column("id", sa.String(64), primary_key=True),  # a hash of the caller and its key
    sa.Column("fingerprint", sa.String(64), nullable=False),  # of the request
    sa.Column(
        "job_ids", LongText, nullable=False
    ),  # JSON list, made before sending, so that a repetition has the same ids
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("status", sa.Integer),  # of the response; None until there is one
    sa.Column("answer", LongText),
    sa.Index(None, "begun_at"),
)
