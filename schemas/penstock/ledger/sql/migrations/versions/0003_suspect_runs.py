"""Runs of suspects in processes of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "penstock_suspect_runs",
        sa.Column("job_id", sa.String(128)),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_penstock_suspect_runs"),
    )


def downgrade() -> None:
    op.drop_table("penstock_suspect_runs")
