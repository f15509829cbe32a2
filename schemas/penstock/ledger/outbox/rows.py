"""Rows of an outbox: taken by one dispatcher for a while, then released or deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.jobs import RESERVED
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox

NOW = from_now(timedelta(milliseconds=1))
"""Ahead of the clock by what SQLite's leaves out."""

_COLUMNS = ("position", "id", "kind", "queue", "priority", "key", "track", "policy", "headers", "body")
_FREE = sa.or_(outbox.c.taken_until.is_(None), outbox.c.taken_until <= from_now())


_FIRST_FREE = sa.select(outbox.c.position).where(_FREE).order_by(outbox.c.position).limit(1)


def has_free_rows(connection: sa.Connection) -> bool:
    """Whether the outbox has free rows. Takes no lock, since SQLite has only one."""
    return connection.execute(_FIRST_FREE).first() is not None


def any_free() -> sa.ColumnElement[bool]:
    """`has_free_rows` as an expression."""
    return _FIRST_FREE.scalar_subquery().is_not(None)


def take_rows(
    connection: sa.Connection, database: Database, token: str, limit: int, exclude: Sequence[str]
) -> tuple[list[Any], bool]:
    """Take the first free rows, but none whose key has an earlier row that another dispatcher has taken.

    Arguments:
        token: the name to take them under.
        exclude: queues to leave out.

    Returns:
        The rows, each with the database's time as `now`, and whether there may be more.
    """
    select = sa.select(*(outbox.c[name] for name in _COLUMNS), NOW.label("now")).where(_FREE)
    if exclude:
        select = select.where(outbox.c.queue.not_in(list(exclude)))
    select = database.locked(select.order_by(outbox.c.position).limit(limit), skip=True)
    rows = list(connection.execute(select).all())
    if not rows:
        return [], False
    until, is_full = rows[0].now + RESERVED, len(rows) >= limit
    rows = _without_overtaking(connection, database, rows)
    if rows:
        change = {"taken_by": token, "taken_until": until}
        connection.execute(sa.update(outbox).where(_at_positions(database, rows)).values(**change))
    return rows, is_full and bool(rows)


def _without_overtaking(connection: sa.Connection, database: Database, rows: list[Any]) -> list[Any]:
    keys = sorted({row.key for row in rows if row.key is not None})
    if not keys:
        return rows
    positions = {row.position for row in rows}
    others = sa.select(outbox.c.key, outbox.c.position)
    others = others.where(database.among(outbox.c.key, keys), outbox.c.position <= rows[-1].position)
    first: dict[str, int] = {}
    for key, position in connection.execute(others):
        if position not in positions:
            first[key] = min(position, first.get(key, position))
    return [row for row in rows if row.key not in first or row.position < first[row.key]]


def release_rows(connection: sa.Connection, database: Database, token: str, rows: Sequence[Any]) -> None:
    """Release these rows, except those that another token has taken since."""
    if rows:
        change = {"taken_by": None, "taken_until": None}
        connection.execute(sa.update(outbox).where(_taken(database, token, rows)).values(**change))


def delete_rows(connection: sa.Connection, database: Database, token: str, rows: Sequence[Any]) -> None:
    """Delete these rows, except those that another token has taken since."""
    if rows:
        connection.execute(sa.delete(outbox).where(_taken(database, token, rows)))


def delete_row(connection: sa.Connection, position: int) -> None:
    """Delete a row, also if another dispatcher has taken it."""
    connection.execute(sa.delete(outbox).where(outbox.c.position == position))


def _taken(database: Database, token: str, rows: Sequence[Any]) -> sa.ColumnElement[bool]:
    return sa.and_(outbox.c.taken_by == token, _at_positions(database, rows))


def _at_positions(database: Database, rows: Sequence[Any]) -> sa.ColumnElement[bool]:
    positions = [row.position for row in rows]
    if database.dialect == "postgresql":
        return outbox.c.position == sa.func.any(sa.bindparam(None, positions, type_=sa.ARRAY(sa.BigInteger)))
    return outbox.c.position.in_(positions)
