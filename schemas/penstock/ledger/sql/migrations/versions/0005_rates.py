"""Rates: what happened, by the minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from penstock.ledger.sql.types import UtcDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "penstock_rates",
        sa.Column("span", sa.Integer(), autoincrement=False),
        sa.Column("minute", sa.Integer(), autoincrement=False),
        sa.Column("cell", sa.String(32)),
        sa.Column("source", sa.String(128)),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("queue", sa.String(128), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("run_ms", sa.BigInteger(), nullable=False),
        sa.Column("wait_ms", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.LargeBinary()),
        sa.Column("wait", sa.LargeBinary()),
        sa.Column("written_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("span", "minute", "cell", "source", name="pk_penstock_rates"),
    )


def downgrade() -> None:
    op.drop_table("penstock_rates")
