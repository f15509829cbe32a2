"""The ledger's database: one interface to SQLite, PostgreSQL and MySQL or MariaDB."""

from __future__ import annotations

import importlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import redact_url
from penstock.ledger.sql.bulk import AnyBulk, compile_bulk
from penstock.ledger.sql.engine import make_engine
from penstock.ledger.sql.faults import Fault, describe, fault_of
from penstock.ledger.sql.text import storable

T = TypeVar("T")

POOL_SIZE = 4
"""Connections a process keeps; at most twice as many for a moment."""
_TRIES = 8
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"
"""Its first column is 1 if readers or a writer were in the way."""

# The pool, the memory or the files of this process are exhausted: as if the database were unavailable.
_FAILURES = (DBAPIError, sa.exc.TimeoutError, MemoryError, OSError)


class Database:
    """The ledger's database: a pool of connections and transactions that are retried where that is right.

    Arguments:
        private: the files of SQLite become their owner's alone; False: they are a web backend's, and keep their mode.
    """

    def __init__(self, url: str, *, pool_size: int = POOL_SIZE, private: bool = True) -> None:
        self.url = url
        self.engine = make_engine(url, private=private, pool_size=pool_size, max_overflow=pool_size)
        self.dialect = self.engine.dialect.name
        # SQLite has one writer. A lock serves waiting threads in turn; SQLite's own busy handler polls.
        self._writer: Any = threading.Lock() if self.dialect == "sqlite" else nullcontext()
        self._batches = self.engine.execution_options(penstock_batch=True)
        self._statements: dict[tuple[str, str], Any] = {}
        self._bulks: dict[Any, AnyBulk] = {}
        self._selects: dict[Any, sa.Select[Any]] = {}

    def write(self, transaction: Callable[[sa.Connection], T]) -> T:
        """Run `transaction` and commit it; run it again if the database asks for that (deadlock, lost race).

        Raises:
            LedgerUnavailable: the database cannot be reached, stays locked, is read-only or full, and the like. Nothing
                was written.
            DBAPIError: only about the data of a row.
        """
        for tries in range(1, _TRIES + 1):
            try:
                with self._writer, self._batches.begin() as connection:
                    return transaction(connection)
            except IntegrityError:
                # Another process inserted the same row first; `transaction` reads it the next time.
                if tries == _TRIES:
                    raise
            except _FAILURES as error:
                fault = fault_of(error)
                if fault is Fault.DATA:
                    raise
                if fault is not Fault.CONFLICT or tries == _TRIES:
                    raise self._unavailable(error, fault) from error
            time.sleep(random.uniform(0, 0.01 * 2**tries))
        raise AssertionError("unreachable")

    def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run `query` without a transaction.

        Raises:
            LedgerUnavailable: the database cannot be reached, or `penstock db upgrade` was not run.
            DBAPIError: only about a value that the database does not take.
        """
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return query(connection)
        except _FAILURES as error:
            if (fault := fault_of(error)) is Fault.DATA:
                raise
            raise self._unavailable(error, fault) from error

    def execute_many(self, connection: sa.Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run an INSERT or UPDATE for each row, and return how many rows of the table it matched.

        Like `connection.execute(statement, rows)` at half the cost: SQLAlchemy compiles the statement once, and the
        driver gets the rows without a conversion of each value by its type.

        Arguments:
            statement: kept by the caller, such as a module's constant or what `insert_ignore` returns.
            rows: at least one; all of the same columns.
        """
        key = (statement, tuple(rows[0]))
        if (bulk := self._bulks.get(key)) is None:
            bulk = self._bulks[key] = compile_bulk(statement, self.engine.dialect, list(rows[0]))
        return bulk.execute(connection, rows)

    def insert(self, table: sa.Table) -> Any:
        """A plain INSERT."""
        return self._statement("insert", table, lambda: sa.insert(table))

    def insert_ignore(self, table: sa.Table) -> Any:
        """An INSERT that leaves existing rows alone."""
        return self._statement("insert_ignore", table, lambda: self._insert_ignore(table))

    def upsert(self, table: sa.Table, keep: tuple[str, ...] = ()) -> Any:
        """An INSERT that replaces the columns of an existing row, except the key and `keep`."""
        return self._statement(f"upsert {keep}", table, lambda: self._upsert(table, keep))

    def _statement(self, name: str, table: sa.Table, make: Callable[[], Any]) -> Any:
        key = (name, table.name)
        if key not in self._statements:
            self._statements[key] = make()
        return self._statements[key]

    def _insert_ignore(self, table: sa.Table) -> Any:
        if self.dialect in ("mysql", "mariadb"):
            return insert_into(table, self.dialect).prefix_with("IGNORE")
        return insert_into(table, self.dialect).on_conflict_do_nothing()

    def _upsert(self, table: sa.Table, keep: tuple[str, ...]) -> Any:
        key = [column.name for column in table.primary_key]
        names = [column.name for column in table.columns if column.name not in (*key, *keep)]
        statement = insert_into(table, self.dialect)
        if self.dialect in ("mysql", "mariadb"):
            return statement.on_duplicate_key_update({name: statement.inserted[name] for name in names})
        return statement.on_conflict_do_update(
            index_elements=key, set_={name: statement.excluded[name] for name in names}
        )

    def among(self, column: sa.Column[str], values: Sequence[str]) -> sa.ColumnElement[bool]:
        """`column IN (values)`, with all values in one parameter where the database can unpack it.

        A list of hundreds of parameters costs as much as the rest of the statement.
        """
        return self._among(column, None, self._listed(values))

    def exact(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The column, compared byte by byte: MariaDB's default collation does not tell "A" from "a"."""
        return sa.cast(column, sa.LargeBinary) if self.dialect in ("mysql", "mariadb") else column

    def rows_of(
        self, connection: sa.Connection, select: sa.Select[Any], column: sa.Column[str], values: Sequence[str]
    ) -> Sequence[sa.Row[Any]]:
        """The rows of a SELECT whose `column` is among `values`, locked in an order that avoids deadlocks.

        Like executing that SELECT with `among` and `locked`, except that it is built and compiled once.

        Arguments:
            select: kept by the caller, such as a module's constant.
        """
        if (restricted := self._selects.get(select)) is None:
            restricted = select.where(self._among(column, "penstock_values", None))
            if self.dialect != "sqlite":
                restricted = self.locked(restricted.order_by(column))
            self._selects[select] = restricted
        return connection.execute(restricted, {"penstock_values": self._listed(values)}).all()

    def _among(self, column: sa.Column[str], name: str | None, values: Any) -> sa.ColumnElement[bool]:
        if self.dialect == "postgresql":
            return column == sa.func.any(sa.bindparam(name, values, type_=sa.ARRAY(sa.String)))
        if self.dialect == "sqlite":
            each = sa.func.json_each(sa.bindparam(name, values, type_=sa.String)).table_valued("value")
            return column.in_(sa.select(each.c.value))
        return column.in_(sa.bindparam(name, values, type_=sa.String, expanding=True))

    def _listed(self, values: Sequence[str]) -> Any:
        stored = [storable(value) for value in values]
        return json.dumps(stored) if self.dialect == "sqlite" else stored

    def locked(self, statement: sa.Select[Any], *, skip: bool = False) -> sa.Select[Any]:
        """The SELECT with its rows locked; on SQLite the whole transaction is the lock already."""
        return statement if self.dialect == "sqlite" else statement.with_for_update(skip_locked=skip)

    def empty_log(self) -> bool:
        """Empty SQLite's write-ahead log, which has former contents of rows. Returns whether it is empty; other
        databases keep logs of their own, so True.

        Raises:
            LedgerUnavailable: the file cannot be written.
        """
        if self.dialect != "sqlite":
            return True
        for _ in range(3):  # each waits for readers, as long as for a lock
            with self._writer:
                if not self.read(lambda connection: connection.exec_driver_sql(_EMPTY_LOG).scalar_one()):
                    return True
        return False

    def close(self) -> None:
        """Close the connections. One that another thread still uses is closed when that thread returns it.

        The database may be used again, and connects again then.
        """
        pool = self.engine.pool
        self.engine.dispose(close=False)  # first: from now on connections that return to the old pool are closed
        pool.dispose()

    def _unavailable(self, error: BaseException, fault: Fault) -> LedgerUnavailable:
        where, text = redact_url(self.url), describe(error)
        if fault is Fault.SCHEMA:
            return LedgerUnavailable(f"the ledger at {where} is not set up; run: penstock db upgrade ({text})")
        if fault is Fault.OTHER:
            return LedgerUnavailable(f"the ledger at {where} does not take a statement: {text}")
        return LedgerUnavailable(f"the ledger at {where} is not available: {text}")


def insert_into(table: sa.Table, dialect: str) -> Any:
    """The dialect's own INSERT. Only that dialect's module is loaded, since each takes memory."""
    name = "mysql" if dialect == "mariadb" else dialect
    return importlib.import_module(f"sqlalchemy.dialects.{name}").insert(table)
