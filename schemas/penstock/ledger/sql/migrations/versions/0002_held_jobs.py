"""Jobs that are held back for workers that know them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from penstock.ledger.sql.types import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "penstock_held_jobs",
        sa.Column("job_id", sa.String(128)),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(128), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_penstock_held_jobs"),
    )
    op.create_index("ix_penstock_held_jobs_due_at", "penstock_held_jobs", ["due_at"])


def downgrade() -> None:
    op.drop_table("penstock_held_jobs")
