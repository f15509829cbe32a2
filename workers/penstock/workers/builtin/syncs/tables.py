"""Tables of a sync: a page's records go into the table named in the settings, together with the position behind it."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Connection, Engine, MetaData, Table, delete, insert, inspect, select
from sqlalchemy.exc import IntegrityError, StatementError

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.ledger.sql.database import insert_into
from penstock.ledger.sql.faults import LASTING, fault_of
from penstock.ledger.sql.types import INSTANT
from penstock.workers.builtin.syncs.changes import is_ahead, is_later
from penstock.workers.builtin.syncs.columns import KEY, MYSQL, TEXT, create, table_of
from penstock.workers.builtin.syncs.positions import (
    CURSORS,
    SyncPosition,
    insert_position,
    move_position,
    read_position,
)
from penstock.workers.builtin.syncs.records import BadRecord, Batch
from penstock.workers.handlers.returns import Permanent

log = logging.getLogger(__name__)

_SOME = 500
"""Parameters of a statement: databases bound them."""

_bad_records = Table(
    "penstock_sync_bad_records",
    MetaData(),
    Column("digest", KEY, primary_key=True),
    Column("sync", KEY, nullable=False),
    Column("record_id", TEXT),
    Column("reason", TEXT, nullable=False),
    Column("record", TEXT, nullable=False),
    Column("met_at", INSTANT, nullable=False),
)
_met_ids = Table(
    "penstock_sync_met_ids",
    MetaData(),
    Column("sync", KEY, primary_key=True),
    Column("record_id", KEY, primary_key=True),
)
"""Ids of the full pass that is under way, of syncs with `delete_missing`."""


@dataclass(frozen=True, slots=True)
class SavedPage:
    inserted: int
    updated: int
    older: int
    deleted: int
    position: SyncPosition


class SyncTable:
    """A sync's table and position. Methods block; call them in a thread."""

    def __init__(self, engine: Engine, name: str, sync: SyncSettings) -> None:
        self._engine, self._name, self._sync = engine, name, sync
        self._table = table_of(sync, engine.dialect.name)

    def prepare(self) -> SyncPosition:
        """Make the tables that are missing, and read how far the sync is.

        Raises:
            Permanent: the table is there and lacks a column, or a primary key or unique index on `id`.
        """
        extra = [_bad_records] * (self._sync.on_bad_record == "keep") + [_met_ids] * self._sync.delete_missing
        for table in (CURSORS, self._table, *extra):
            create(self._engine, table)
        self._check()
        with self._engine.begin() as connection:
            if (position := read_position(connection, self._name)) is not None:
                return position
        try:
            with self._engine.begin() as connection:
                insert_position(connection, self._name)
        except IntegrityError:  # another worker was quicker
            with self._engine.begin() as connection:
                return read_position(connection, self._name) or SyncPosition()
        return SyncPosition()

    def save(self, batch: Batch, before: SyncPosition, after: SyncPosition, *, last: bool = False) -> SavedPage:
        """Write a page's rows and the position behind it in one transaction.

        Arguments:
            batch: rows with distinct ids.
            last: this is the last page of its pass.

        Raises:
            PositionConflict: the position is no longer `before`.
            Permanent: the database does not take a value.
        """
        try:
            with self._engine.begin() as connection:
                # First of all: it locks the row.
                after = move_position(connection, self._name, before, after)
                changes = self._stored_changes(connection, [*(row["id"] for row in batch.rows), *batch.deleted])
                rows = [row for row in batch.rows if not self._is_older(row.get(self._guard), row["id"], changes)]
                self._write(connection, rows)
                tombs = [
                    key
                    for key, change in batch.deleted.items()
                    if key in changes and not self._is_older(change, key, changes)
                ]
                self._delete(connection, tombs)
                if batch.bad and self._sync.on_bad_record == "keep":
                    self._keep(connection, batch.bad)
                deleted = len(tombs)
                if self._sync.delete_missing and before.job is not None:
                    deleted += self._follow_full_pass(connection, batch, before, last=last)
        except StatementError as error:
            if fault_of(error) not in LASTING:
                raise
            # Also a NOT NULL or CHECK of the user's own.
            raise Permanent(f"sync {self._name!r}: table {self._table}: {error.orig}") from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise Permanent(f"sync {self._name!r}: table {self._table} cannot hold a value: {error}") from error
        existing = sum(row["id"] in changes for row in rows)
        older = len(batch.rows) - len(rows) + sum(key in changes for key in batch.deleted) - len(tombs)
        return SavedPage(len(rows) - existing, existing, older, deleted, after)

    @property
    def _guard(self) -> str:
        return self._sync.guard or ""

    def _stored_changes(self, connection: Connection, ids: Sequence[Any]) -> dict[Any, Any]:
        """Ids that are in the table → their rows' time of change; None without one."""
        columns = [self._table.c.id] + ([self._table.c[self._guard]] if self._guard else [])
        changes: dict[Any, Any] = {}
        for some in _parts(ids):
            for row in connection.execute(select(*columns).where(self._table.c.id.in_(some))):
                changes[row[0]] = row[1] if self._guard else None
        return changes

    def _is_older(self, change: Any, key: Any, changes: dict[Any, Any]) -> bool:
        """Whether the row has a later change. A change in the future must not shut out all that follow."""
        stored = changes.get(key)
        if change is None or stored is None or is_ahead(stored, datetime.now(UTC), self._sync.updated_as):
            return False
        return is_later(stored, change)

    def _write(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_columns[tuple(sorted(row))].append(row)
        for names, group in by_columns.items():
            connection.execute(self._upsert([name for name in names if name != "id"]), group)

    def _upsert(self, names: Sequence[str]) -> Any:
        """Statement for rows of these columns and `id`; the other columns of a row that is there stay."""
        statement = insert_into(self._table, self._engine.dialect.name)
        if self._engine.dialect.name in MYSQL:
            return statement.on_duplicate_key_update({name: statement.inserted[name] for name in names or ["id"]})
        if not names:
            return statement.on_conflict_do_nothing(index_elements=["id"])
        changed = {name: statement.excluded[name] for name in names}
        return statement.on_conflict_do_update(index_elements=["id"], set_=changed)

    def _delete(self, connection: Connection, ids: Sequence[Any]) -> None:
        for some in _parts(ids):
            connection.execute(delete(self._table).where(self._table.c.id.in_(some)))

    def _keep(self, connection: Connection, bad: Sequence[BadRecord]) -> None:
        """Keep bad records with their reasons; a record that is met again is kept once."""
        rows = {hashlib.sha256(f"{self._name}\n{record.text}".encode()).hexdigest(): record for record in bad}
        for some in _parts(list(rows)):
            connection.execute(delete(_bad_records).where(_bad_records.c.digest.in_(some)))
        connection.execute(
            insert(_bad_records),
            [
                {
                    "digest": digest,
                    "sync": self._name,
                    "record_id": record.id,
                    "reason": record.reason,
                    "record": record.text,
                    "met_at": datetime.now(UTC),
                }
                for digest, record in rows.items()
            ],
        )

    def _follow_full_pass(self, connection: Connection, batch: Batch, before: SyncPosition, *, last: bool) -> int:
        """Note the ids of a full pass; after its last page delete the rows that it has not met, and count them."""
        of_sync = _met_ids.c.sync == self._name
        if before.page is None:
            connection.execute(delete(_met_ids).where(of_sync))
        ids = {str(row["id"]) for row in batch.rows}
        for some in _parts(sorted(ids)):
            connection.execute(delete(_met_ids).where(of_sync, _met_ids.c.record_id.in_(some)))
        if ids:
            connection.execute(insert(_met_ids), [{"sync": self._name, "record_id": key} for key in sorted(ids)])
        if not last:
            return 0
        met = set(connection.execute(select(_met_ids.c.record_id).where(of_sync)).scalars())
        connection.execute(delete(_met_ids).where(of_sync))
        missing = [key for key in connection.execute(select(self._table.c.id)).scalars() if str(key) not in met]
        if missing and (not met or before.bad or batch.bad):
            why = "records that could not be read" if met else "no record at all"
            log.warning(
                "sync %s: the full run met %s, so no row is deleted; %d are missing", self._name, why, len(missing)
            )
            return 0
        self._delete(connection, missing)
        return len(missing)

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


def _parts(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(ids), _SOME):
        yield ids[start : start + _SOME]
