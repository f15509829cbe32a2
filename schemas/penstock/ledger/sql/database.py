"""The ledger's database: one interface to SQLite, PostgreSQL and MySQL or MariaDB."""

from __future__ import annotations

import importlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import redact_url
from penstock.ledger.sql.bulk import AnyBulk, JoinedBulk, compile_bulk
from penstock.ledger.sql.engine import make_engine
from penstock.ledger.sql.faults import Fault, describe, fault_of
from penstock.ledger.sql.pools import SharedPool
from penstock.ledger.sql.text import storable
from penstock.ledger.sql.urls import is_behind_pooler

log = logging.getLogger("penstock.ledger")

T = TypeVar("T")

POOL_SIZE, MOST_CONNECTIONS = 4, 8
"""Connections that a process keeps, and has for a moment."""
ANSWER_SECONDS = 60
"""A MySQL or MariaDB that answers nothing for this long is unavailable. It is longer than the server waits for a lock
(50 s), since a client that leaves earlier leaves its statement running."""
_TRIES = 8
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"
"""Its first column is 1 if readers or a writer were in the way."""

# The pool, the memory or the files of this process are exhausted: as if the database were unavailable.
_FAILURES = (DBAPIError, sa.exc.TimeoutError, MemoryError, OSError)


class Database:
    """The ledger's database: a pool of connections and transactions that are retried where that is right.

    Arguments:
        pool_size: connections that it keeps. Where all are in use it makes one for a moment; if it keeps one alone,
            not before a thread has waited for its turn on that.
        private: the files of SQLite become their owner's alone; False: they are a web backend's, and keep their mode.
        answer_seconds, name: see `make_engine`.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = POOL_SIZE,
        private: bool = True,
        answer_seconds: int | None = ANSWER_SECONDS,
        name: str | None = None,
    ) -> None:
        self.url = url
        self.engine = make_engine(
            url,
            private=private,
            answer_seconds=answer_seconds,
            name=name,
            poolclass=SharedPool if pool_size == 1 else sa.QueuePool,
            pool_size=pool_size,
            max_overflow=MOST_CONNECTIONS - pool_size,
        )
        self.dialect = self.engine.dialect.name
        # SQLite has one writer. A lock serves waiting threads in turn; SQLite's own busy handler polls.
        self._writer: Any = threading.Lock() if self.dialect == "sqlite" else nullcontext()
        self._batches = self.engine.execution_options(penstock_batch=True)
        self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")
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

        def run() -> T:
            with self._writer, self._batches.begin() as connection:
                return transaction(connection)

        return self._until_done(run)

    def insert_new(self, table: sa.Table, key: sa.Column[str], rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Insert the rows whose key is new, and return their keys, without a look first; best if almost all are new.

        On PostgreSQL this is one round trip: a statement by itself is a transaction. Elsewhere all rows are inserted if
        all are new, and else none.

        Arguments:
            rows: at least one; all of the same columns, and each of another key.

        Raises:
            LedgerUnavailable, DBAPIError: see `write`. The rows may be there if the connection was lost.
        """
        if self.dialect != "postgresql":
            return self._insert_all(table, key, rows)
        statement = self._statement("insert_new", table, lambda: self._insert_ignore(table).returning(key))
        bulk = self._bulk(statement, rows)
        assert isinstance(bulk, JoinedBulk), self.dialect

        def run() -> set[str]:
            with self._single.connect() as connection:
                return set(bulk.run(connection, rows).scalars())

        return self._until_done(run)

    def _insert_all(self, table: sa.Table, key: sa.Column[str], rows: Sequence[Mapping[str, Any]]) -> set[str]:
        def run() -> set[str]:
            try:
                with self._writer, self._batches.begin() as connection:
                    self.execute_many(connection, self.insert(table), rows)
            except IntegrityError:
                return set()
            return {row[key.name] for row in rows}

        return self._until_done(run)

    def _until_done(self, run: Callable[[], T]) -> T:
        for tries in range(1, _TRIES + 1):
            try:
                return run()
            except IntegrityError:
                # Another process inserted the same row first; `run` reads it the next time.
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
            with self._single.connect() as connection:
                return query(connection)
        except _FAILURES as error:
            if (fault := fault_of(error)) is Fault.DATA:
                raise
            raise self._unavailable(error, fault) from error

    def repeated(self, select: sa.Select[*tuple[Any, ...]]) -> RepeatedRead:
        """A read of one row of true and false that is run many times a second."""
        return RepeatedRead(self, select)

    def execute_many(self, connection: sa.Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run an INSERT or UPDATE for each row, and return how many rows of the table it matched.

        Like `connection.execute(statement, rows)` at half the cost: SQLAlchemy compiles the statement once, and the
        driver gets the rows without a conversion of each value by its type.

        Arguments:
            statement: kept by the caller, such as a module's constant or what `insert_ignore` returns.
            rows: at least one; all of the same columns.
        """
        return self._bulk(statement, rows).execute(connection, rows)

    def _bulk(self, statement: Any, rows: Sequence[Mapping[str, Any]]) -> AnyBulk:
        key = (statement, tuple(rows[0]))
        if (bulk := self._bulks.get(key)) is None:
            bulk = self._bulks[key] = compile_bulk(statement, self.engine.dialect, list(rows[0]))
        return bulk

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


class RepeatedRead:
    """A statement of true and false, on a connection that it keeps, given to the driver as it is: a tenth of the cost
    of `Database.read`. Not thread-safe."""

    def __init__(self, database: Database, select: sa.Select[*tuple[Any, ...]]) -> None:
        self._database, self._select = database, select
        self._text = str(select.compile(database.engine, compile_kwargs={"literal_binds": True}))
        self._errors = (*_FAILURES, database.engine.dialect.loaded_dbapi.Error)
        self._connection: sa.Connection | None = None
        self._ask: Callable[[], Iterable[Any]] = tuple

    def values(self) -> list[bool]:
        """The values of its one row.

        Raises:
            LedgerUnavailable: as `Database.read`, which is asked after an error.
        """
        try:
            if self._connection is None:
                self._connect()
            return [bool(value) for value in self._ask()]
        except self._errors as error:
            log.info("a look at the ledger failed, and is repeated on another connection: %s", describe(error))
            if self._connection is not None:
                self._connection.invalidate()
            self.close()
        return [bool(value) for value in self._database.read(lambda connection: connection.execute(self._select).one())]

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> None:
        self._connection = self._database._single.connect()
        cursor = self._connection.connection.cursor()
        if self._database.engine.driver != "psycopg":
            self._ask = lambda: _dbapi_row(cursor, self._text)
            return
        text = self._text
        if not is_behind_pooler(self._database.url):  # which would prepare it on one of its connections
            cursor.execute(f"PREPARE penstock_look AS {text}")
            text = "EXECUTE penstock_look"
        libpq = cursor.connection.pgconn  # psycopg's own way of a statement costs three times as much
        self._ask = lambda: _libpq_row(libpq, text.encode())


def _dbapi_row(cursor: Any, text: str) -> Iterable[Any]:
    cursor.execute(text)
    row: Iterable[Any] = cursor.fetchall()[0]
    return row


def _libpq_row(libpq: Any, text: bytes) -> Iterable[bool]:
    answer = libpq.exec_(text)
    if not answer.ntuples:
        raise OSError(libpq.get_error_message() or "no answer")
    return [answer.get_value(0, column) == b"t" for column in range(answer.nfields)]


def insert_into(table: sa.Table, dialect: str) -> Any:
    """The dialect's own INSERT. Only that dialect's module is loaded, since each takes memory."""
    name = "mysql" if dialect == "mariadb" else dialect
    return importlib.import_module(f"sqlalchemy.dialects.{name}").insert(table)
