"""Alerts; and what the list of workers lacks: version, concurrency, drains and orders."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from penstock.ledger.sql.types import UtcDateTime

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("penstock_workers", sa.Column("version", sa.String(32)))
    op.add_column("penstock_workers", sa.Column("concurrency", sa.Integer()))
    op.add_column("penstock_workers", sa.Column("draining_at", UtcDateTime()))
    op.add_column("penstock_workers", sa.Column("ordered", sa.String(8)))
    op.create_table(
        "penstock_alerts",
        sa.Column("alert", sa.String(128)),
        sa.Column("subject", sa.String(255)),
        sa.Column("judged_at", UtcDateTime(), nullable=False),
        sa.Column("since", UtcDateTime()),
        sa.Column("firing", sa.String(128)),
        sa.Column("value", sa.Float()),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("alert", "subject", name="pk_penstock_alerts"),
    )
    op.create_table(
        "penstock_alert_firings",
        sa.Column("id", sa.String(128)),
        sa.Column("alert", sa.String(128), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("condition", sa.String(32), nullable=False),
        sa.Column("began_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("value", sa.Float()),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("notified_at", UtcDateTime()),
        sa.Column("jobs", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_alert_firings"),
    )
    op.create_index("ix_penstock_alert_firings_ended_at", "penstock_alert_firings", ["ended_at"])
    op.create_table(
        "penstock_alert_silences",
        sa.Column("alert", sa.String(128)),
        sa.Column("subject", sa.String(255)),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("reason", sa.String(255)),
        sa.Column("silenced_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("alert", "subject", name="pk_penstock_alert_silences"),
    )


def downgrade() -> None:
    for table in ("penstock_alert_silences", "penstock_alert_firings", "penstock_alerts"):
        op.drop_table(table)
    for column in ("ordered", "draining_at", "concurrency", "version"):
        op.drop_column("penstock_workers", column)
