"""The types of the ledger's columns: the same values in and out on every database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from penstock.ledger.sql.text import storable


class ExceptOnMysql(TypeDecorator[Any]):
    """A type that is another one on MySQL and MariaDB. Their types are imported there alone: they take a megabyte.

    Arguments:
        on_mysql: makes the other one, from SQLAlchemy's module of MySQL's types.
    """

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = sa.types.NullType
    cache_ok = True

    def __init__(self, impl: TypeEngine[Any], on_mysql: Callable[[Any], TypeEngine[Any]]) -> None:
        super().__init__()
        self.impl, self.on_mysql = impl, on_mysql

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name not in ("mysql", "mariadb"):
            return dialect.type_descriptor(self.impl_instance)
        from sqlalchemy.dialects import mysql

        return dialect.type_descriptor(self.on_mysql(mysql))


class _SqliteTime(sa.types.UserDefinedType[str]):
    """A time as text: SQLite has no type for times. SQLAlchemy's DATETIME writes the same text more slowly."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        return "DATETIME"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC with microseconds on every database.

    Raises:
        ValueError: a naive datetime is bound. Its zone can only be guessed.
    """

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(_SqliteTime())
        return INSTANT.load_dialect_impl(dialect)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is not UTC:
            if value.tzinfo is None:
                raise ValueError(f"naive datetime {value!r}; give it a time zone")
            value = value.astimezone(UTC)
        if dialect.name == "sqlite":
            return value.isoformat(" ", "microseconds")[:26]  # without the offset, so that text sorts as time
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return _in_utc


def _in_utc(value: Any) -> datetime | None:
    """The driver's value, which is a text on SQLite, as an aware time. Lists have four in a row."""
    if value is None:
        return None
    time: datetime = datetime.fromisoformat(value) if type(value) is str else value
    if (zone := time.tzinfo) is UTC:
        return time
    return time.replace(tzinfo=UTC) if zone is None else time.astimezone(UTC)


class Text(TypeDecorator[str]):
    """Text from outside, stored the same way in every database: a NUL or lone surrogate is replaced.

    A text that is looked for is changed in the same way, so nothing is found where nothing can be.
    """

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return storable(value) if isinstance(value, str) else value


class LongerText(Text):
    """`Text` in a column of type TEXT."""

    impl = sa.Text
    cache_ok = True


# MySQL's TEXT and BLOB end at 64 KiB; a payload may have 256 KiB.
LongText = ExceptOnMysql(sa.Text(), lambda mysql: mysql.MEDIUMTEXT())
LongBytes = ExceptOnMysql(sa.LargeBinary(), lambda mysql: mysql.MEDIUMBLOB())
INSTANT = ExceptOnMysql(sa.DateTime(timezone=True), lambda mysql: mysql.DATETIME(fsp=6))  # plain ones drop the fraction
