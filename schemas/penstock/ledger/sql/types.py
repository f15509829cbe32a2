"""The types of the ledger's columns: the same values in and out on every database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from penstock.ledger.sql.text import storable


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
        if dialect.name == "mysql" or dialect.name == "mariadb":
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))  # plain DATETIME drops the fraction
        return dialect.type_descriptor(sa.DateTime(timezone=True))

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

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


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
LongText = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
LongBytes = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
