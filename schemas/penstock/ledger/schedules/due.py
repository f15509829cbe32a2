"""Schedules whose time has come, or comes soon."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now, has_passed
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import schedules

_DUE = sa.select(*(schedules.c[name] for name in ("name", "rule", "source", "module", "due_at")))


def due_rows(database: Database, within: timedelta, limit: int) -> tuple[datetime, list[Any]]:
    """The database's time, and the first rows due by then or soon after.

    Arguments:
        within: how soon.
    """

    def read_due(connection: sa.Connection) -> tuple[datetime, list[Any]]:
        now: datetime = connection.execute(sa.select(from_now())).scalar_one()
        select = _DUE.where(schedules.c.due_at <= now + within).order_by(schedules.c.due_at).limit(limit)
        return now, list(connection.execute(select))

    return database.read(read_due)


def any_due() -> sa.ColumnElement[bool]:
    return has_passed(schedules.c.due_at)


def upcoming_rows(database: Database, after: tuple[datetime, str], until: datetime, limit: int) -> Sequence[Any]:
    """Rows due after this time and name, in that order."""
    due, name = schedules.c.due_at, schedules.c.name
    start, last = after
    upcoming = (due >= start, due <= until, sa.or_(due > start, name > last))
    select = sa.select(schedules).where(*upcoming).order_by(due, name).limit(limit)
    return database.read(lambda connection: connection.execute(select).all())
