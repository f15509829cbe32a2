"""Columns of a sync's tables: their types on every database, and tables that are made if they are missing."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    Engine,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    inspect,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeDecorator, TypeEngine

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.ledger.sql.types import INSTANT, ExceptOnMysql

MAX_ID = 191
"""Letters of a text id: 191 × 4 bytes is the longest key that older MySQL indexes."""
DIGITS, SCALE = 38, 10
"""Digits of a decimal column, and those behind its point."""
MYSQL = ("mysql", "mariadb")
# MySQL: exact comparison, and room for more than 64 KB, neither of which is its default.
KEY = ExceptOnMysql(String(MAX_ID), lambda mysql: mysql.VARCHAR(MAX_ID, charset="utf8mb4", collation="utf8mb4_bin"))
TEXT = ExceptOnMysql(Text(), lambda mysql: mysql.MEDIUMTEXT(charset="utf8mb4"))


class _Exact(TypeDecorator[Decimal]):
    """A decimal. SQLite has only floats for it: one that a float does not hold is refused."""

    impl = Numeric(DIGITS, SCALE)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(Numeric(DIGITS, SCALE, asdecimal=False))
        return dialect.type_descriptor(Numeric(DIGITS, SCALE))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        if Decimal(repr(float(value))) != value:
            raise ValueError(f"SQLite holds about 15 digits of a decimal; declare the column as str for {value}")
        return float(value)


TYPES: dict[str, TypeEngine[Any]] = {
    "str": TEXT,
    "int": BigInteger(),
    "float": Double(),
    "decimal": _Exact(),
    "date": Date(),
    "datetime": INSTANT,
    "bool": Boolean(),
    "json": JSON(),
}


def table_of(sync: SyncSettings, dialect: str) -> Table:
    """The table of the records, as the settings describe it."""
    schema, _, name = sync.table.rpartition(".")
    key = sync.columns.get("id")
    columns: list[Column[Any]] = [
        Column("id", BigInteger() if key and key.type == "int" else KEY, primary_key=True, autoincrement=False)
    ]
    if sync.columns:
        columns += [Column(name, TYPES[each.type]) for name, each in sync.columns.items() if name != "id"]
    else:
        columns += [Column("updated_at", TEXT), Column("record", JSON(), nullable=False)]
    options: dict[str, Any] = {f"{dialect}_charset": "utf8mb4"} if dialect in MYSQL else {}
    return Table(name, MetaData(), *columns, schema=schema or None, **options)


def create(engine: Engine, table: Table) -> None:
    """Make a table if it is missing."""
    if inspect(engine).has_table(table.name, schema=table.schema):
        return
    try:
        with engine.begin() as connection:
            connection.execute(CreateTable(table, if_not_exists=True))
    except (IntegrityError, ProgrammingError, OperationalError):
        # PostgreSQL lets two IF NOT EXISTS collide when they run at once.
        if not inspect(engine).has_table(table.name, schema=table.schema):
            raise
