"""Notices: PostgreSQL notifies workers of new controls and orders, so that one without jobs need not ask for them."""

from __future__ import annotations

import sqlalchemy as sa

CHANNEL = "penstock_members"


def notify_members(connection: sa.Connection) -> None:
    """Notify the workers when this transaction commits. Does nothing on other databases, which workers ask."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))
