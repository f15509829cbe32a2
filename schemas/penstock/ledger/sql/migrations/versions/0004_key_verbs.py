"""Verbs of API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("penstock_api_keys", sa.Column("verbs", sa.Text()))


def downgrade() -> None:
    op.drop_column("penstock_api_keys", "verbs")
