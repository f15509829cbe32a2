"""The processes of a worker's pool."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("penstock_workers", sa.Column("pool_pids", sa.Text()))


def downgrade() -> None:
    op.drop_column("penstock_workers", "pool_pids")
