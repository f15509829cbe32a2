"""Tables of a sync: the records go into the table named in the settings, the position into `penstock_sync_cursors`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Date,
    Double,
    Engine,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeEngine

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.ledger.sql.database import insert_into
from penstock.ledger.sql.faults import LASTING, fault_of
from penstock.ledger.sql.types import INSTANT, ExceptOnMysql
from penstock.workers.handlers.returns import Permanent

MAX_ID = 191
"""Letters of a text id: 191 × 4 bytes is the longest key that older MySQL indexes."""
_MYSQL = ("mysql", "mariadb")
# MySQL: exact comparison, and room for more than 64 KB, neither of which is its default.
_KEY = ExceptOnMysql(String(MAX_ID), lambda mysql: mysql.VARCHAR(MAX_ID, charset="utf8mb4", collation="utf8mb4_bin"))
_TEXT = ExceptOnMysql(Text(), lambda mysql: mysql.MEDIUMTEXT(charset="utf8mb4"))
_TYPES: dict[str, TypeEngine[Any]] = {
    "str": _TEXT,
    "int": BigInteger(),
    "float": Double(),
    "decimal": Numeric(38, 10),
    "date": Date(),
    "datetime": INSTANT,
    "bool": Boolean(),
    "json": JSON(),
}
_cursors = Table(
    "penstock_sync_cursors",
    MetaData(),
    Column("name", _KEY, primary_key=True),
    Column("cursor", _TEXT, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("updated_at", INSTANT, nullable=False),
)


class PositionConflict(Exception):
    """Another run of the same sync has saved a page in the meantime; nothing of ours was written."""


@dataclass(frozen=True, slots=True)
class SyncPosition:
    """Progress of a sync.

    Attributes:
        page: the cursor of the page to fetch next; None: the first.
        since: the greatest change of the last finished pass, sent with each request of this one.
        seen: the greatest change of this pass so far. It counts once the pass is done: pages may be in any order.
        job: the job whose full pass is under way.
        revision: rises by one with each page saved.
    """

    page: str | None = None
    since: str | None = None
    seen: str | None = None
    job: str | None = None
    revision: int = 0

    def restarted(self, job: str | None = None) -> SyncPosition:
        """From the first page; as a full pass of a job, without what was known."""
        return replace(self, page=None, seen=None, job=job, since=None if job else self.since)


@dataclass(frozen=True, slots=True)
class SavedPage:
    inserted: int
    updated: int
    position: SyncPosition


class SyncTable:
    """A sync's table and position. Methods block; call them in a thread."""

    def __init__(self, engine: Engine, name: str, sync: SyncSettings) -> None:
        self._engine, self._name = engine, name
        self._table = _table(sync, engine.dialect.name)

    def prepare(self) -> SyncPosition:
        """Make the tables that are missing, and read how far the sync is.

        Raises:
            Permanent: the table is there and lacks a column, or a primary key or unique index on `id`.
        """
        for table in (_cursors, self._table):
            _create(self._engine, table)
        self._check()
        with self._engine.begin() as connection:
            if (position := self._read(connection)) is not None:
                return position
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(_cursors).values(name=self._name, **_columns(SyncPosition())))
        except IntegrityError:  # another worker was quicker
            with self._engine.begin() as connection:
                return self._read(connection) or SyncPosition()
        return SyncPosition()

    def save(self, rows: Sequence[dict[str, Any]], before: SyncPosition, after: SyncPosition) -> SavedPage:
        """Write a page's rows and the position behind it in one transaction.

        Arguments:
            rows: with distinct ids.

        Raises:
            PositionConflict: the position is no longer `before`.
            Permanent: the database does not take a value.
        """
        after = replace(after, revision=before.revision + 1)
        try:
            with self._engine.begin() as connection:
                # First of all: it locks the row, so that two runs cannot write pages side by side.
                moved = connection.execute(
                    update(_cursors)
                    .where(_cursors.c.name == self._name, _cursors.c.revision == before.revision)
                    .values(**_columns(after))
                )
                if moved.rowcount != 1:
                    raise PositionConflict(self._name)
                existing = self._count_existing(connection, [row["id"] for row in rows])
                if rows:
                    connection.execute(self._upsert(), list(rows))
        except DBAPIError as error:
            if fault_of(error) not in LASTING:
                raise
            # Also a NOT NULL or CHECK of the user's own.
            raise Permanent(f"sync {self._name!r}: table {self._table}: {error.orig}") from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise Permanent(f"sync {self._name!r}: table {self._table} cannot hold a value: {error}") from error
        return SavedPage(len(rows) - existing, existing, after)

    def _read(self, connection: Connection) -> SyncPosition | None:
        row = connection.execute(
            select(_cursors.c.cursor, _cursors.c.revision).where(_cursors.c.name == self._name)
        ).one_or_none()
        return None if row is None else SyncPosition(**{**json.loads(row.cursor), "revision": row.revision})

    def _count_existing(self, connection: Connection, ids: Sequence[Any]) -> int:
        """Count the ids that are in the table."""
        key, count = self._table.c.id, 0
        for start in range(0, len(ids), 500):  # databases bound the parameters of one statement
            some = ids[start : start + 500]
            count += len(connection.execute(select(key).where(key.in_(some))).all())
        return count

    def _upsert(self) -> Any:
        names = [column.name for column in self._table.columns if column.name != "id"]
        statement = insert_into(self._table, self._engine.dialect.name)
        if self._engine.dialect.name in _MYSQL:
            return statement.on_duplicate_key_update({name: statement.inserted[name] for name in names or ["id"]})
        if not names:
            return statement.on_conflict_do_nothing(index_elements=["id"])
        changed = {name: statement.excluded[name] for name in names}
        return statement.on_conflict_do_update(index_elements=["id"], set_=changed)

    def _check(self) -> None:
        table, inspector = self._table, inspect(self._engine)
        there = {column["name"] for column in inspector.get_columns(table.name, table.schema)}
        if missing := [column.name for column in table.columns if column.name not in there]:
            raise Permanent(
                f"sync {self._name!r}: table {table} has no column {missing[0]!r}; add it or correct `columns`"
            )
        unique = [
            inspector.get_pk_constraint(table.name, table.schema)["constrained_columns"],
            *(each["column_names"] for each in inspector.get_unique_constraints(table.name, table.schema)),
            *(each["column_names"] for each in inspector.get_indexes(table.name, table.schema) if each["unique"]),
        ]
        if ["id"] not in unique:
            raise Permanent(f"sync {self._name!r}: table {table} needs a primary key or unique index on 'id'")


def _table(sync: SyncSettings, dialect: str) -> Table:
    schema, _, name = sync.table.rpartition(".")
    key = sync.columns.get("id")
    columns: list[Column[Any]] = [
        Column("id", BigInteger() if key and key.type == "int" else _KEY, primary_key=True, autoincrement=False)
    ]
    if sync.columns:
        columns += [Column(name, _TYPES[each.type]) for name, each in sync.columns.items() if name != "id"]
    else:
        columns += [Column("updated_at", _TEXT), Column("record", JSON(), nullable=False)]
    options: dict[str, Any] = {f"{dialect}_charset": "utf8mb4"} if dialect in _MYSQL else {}
    return Table(name, MetaData(), *columns, schema=schema or None, **options)


def _create(engine: Engine, table: Table) -> None:
    if inspect(engine).has_table(table.name, schema=table.schema):
        return
    try:
        with engine.begin() as connection:
            connection.execute(CreateTable(table, if_not_exists=True))
    except (IntegrityError, ProgrammingError, OperationalError):
        # PostgreSQL lets two IF NOT EXISTS collide when they run at once.
        if not inspect(engine).has_table(table.name, schema=table.schema):
            raise


def _columns(position: SyncPosition) -> dict[str, Any]:
    kept = asdict(position)
    revision = kept.pop("revision")
    return {"cursor": json.dumps(kept), "revision": revision, "updated_at": datetime.now(UTC)}
