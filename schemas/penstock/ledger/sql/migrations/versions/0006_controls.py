"""Controls: changes by operators at run time, and the queues that workers were told to stop consuming."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from penstock.ledger.sql.types import LongText, UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "penstock_controls",
        sa.Column("scope", sa.String(16)),
        sa.Column("name", sa.String(128)),
        sa.Column("what", sa.String(16)),
        sa.Column("value", sa.Integer()),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("reason", LongText),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("until", UtcDateTime()),
        sa.PrimaryKeyConstraint("scope", "name", "what", name="pk_penstock_controls"),
    )
    op.add_column("penstock_workers", sa.Column("left_queues", sa.Text()))


def downgrade() -> None:
    op.drop_column("penstock_workers", "left_queues")
    op.drop_table("penstock_controls")
