"""The alerts: the state of each, how they went, and who has silenced them."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import ID, NAME, metadata
from penstock.ledger.sql.types import LongerText, Text, UtcDateTime

alerts = sa.Table(
    "penstock_alerts",
    metadata,
    # A row for each queue, kind, schedule or outbox whose condition holds or held lately. It is the lock of an onset
    # and of an end, which each happen in the transaction that enqueues their notifications.
    sa.Column("alert", NAME, primary_key=True),  # of [alerts.NAME]
    sa.Column("subject", Text(255), primary_key=True),  # such as a queue; empty for no_dispatcher
    sa.Column("judged_at", UtcDateTime, nullable=False),  # on the database's clock; an older judgement is dropped
    sa.Column("since", UtcDateTime),  # the condition holds since then; None: it does not
    sa.Column("firing", ID),  # the firing that has not ended; None: there is none, or `over` is not over
    sa.Column("value", sa.Float),
    sa.Column("detail", LongerText, nullable=False),
)

alert_firings = sa.Table(
    "penstock_alert_firings",
    metadata,
    sa.Column("id", ID, primary_key=True),
    sa.Column("alert", NAME, nullable=False),
    sa.Column("subject", Text(255), nullable=False),
    sa.Column("condition", sa.String(32), nullable=False),  # its `when`
    sa.Column("began_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("value", sa.Float),  # when it began
    sa.Column("detail", LongerText, nullable=False),
    sa.Column("notified_at", UtcDateTime),  # None: it is silenced, or has no one to notify
    sa.Column("jobs", sa.Text, nullable=False),  # JSON list: ids of the jobs that notify
    sa.Index(None, "ended_at"),
)

alert_silences = sa.Table(
    "penstock_alert_silences",
    metadata,
    sa.Column("alert", NAME, primary_key=True),
    sa.Column("subject", Text(255), primary_key=True),  # empty: all of the alert
    sa.Column("until", UtcDateTime, nullable=False),
    sa.Column("actor", Text(255), nullable=False),
    sa.Column("reason", Text(255)),
    sa.Column("silenced_at", UtcDateTime, nullable=False),
)
