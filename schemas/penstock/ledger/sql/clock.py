"""The clock of the ledger's database. Leases use it, since it is the one clock that all machines share."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from penstock.ledger.sql.types import UtcDateTime


class _FromNow(FunctionElement[datetime]):
    type = UtcDateTime()
    inherit_cache = True


def from_now(lease: timedelta = timedelta()) -> sa.ColumnElement[datetime]:
    """Expression for the time on the database's clock after `lease`, which may be negative."""
    return _FromNow(sa.literal(lease.total_seconds(), sa.Float()))


def seconds_from_now(name: str) -> sa.ColumnElement[datetime]:
    """`from_now` with the seconds that each row binds under this name; NULL for None."""
    return _FromNow(sa.bindparam(name, type_=sa.Float()))


def has_passed(column: sa.Column[datetime], *where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Expression that says whether the first time in a column with an index has passed.

    That time is compared once: a clock that runs on during a statement cannot bound the scan of an index.
    """
    first = sa.select(column).where(*where, column.is_not(None)).order_by(column).limit(1).scalar_subquery()
    return first <= from_now(timedelta(milliseconds=1))  # ahead by the fraction that SQLite's clock leaves out


@compiles(_FromNow, "postgresql")
def _postgresql(element: _FromNow, compiler: SQLCompiler, **options: Any) -> str:
    return f"clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **options)})"


@compiles(_FromNow, "mysql")
@compiles(_FromNow, "mariadb")
def _mysql(element: _FromNow, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"TIMESTAMPADD(MICROSECOND, {seconds} * 1000000, UTC_TIMESTAMP(6))"


@compiles(_FromNow, "sqlite")
def _sqlite(element: _FromNow, compiler: SQLCompiler, **options: Any) -> str:
    # As SQLAlchemy writes it, with six digits: times are compared as text.
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"
