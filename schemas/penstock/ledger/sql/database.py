"""Connecting to the ledger's database, one way for SQLite, PostgreSQL and MySQL or MariaDB."""

from __future__ import annotations

import importlib
import json
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.sql.visitors import replacement_traverse

from penstock.config.errors import ConfigError, LedgerUnavailable
from penstock.config.settings import redact_url
from penstock.ledger.sql.tables import UtcDateTime

T = TypeVar("T")

POOL_SIZE = 4
"""Connections a process keeps; at most as many again for a moment."""
POSTGRES_ARGUMENTS = {
    "connect_timeout": 5,
    # A server that is gone without a word would be waited for, for two hours or a quarter of one.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_PING_AFTER_SECONDS = 1.0
"""A connection that was used a shorter time ago is taken to be alive."""
_TRIES = 8
_SQLITE_BUSY_SECONDS = 10

# Deadlock and serialisation failures by SQLSTATE (PostgreSQL) and errno (MySQL): the transaction is run again.
_RETRIED = {"40001", "40P01", 1213, 1205}
_UNAVAILABLE_WORDS = (
    "locked",
    "connect",
    "server closed",
    "gone away",
    "lost connection",
    "shutting down",
    "terminat",
)


class Database:
    """The ledger's database: a pool of connections and transactions that are retried where that is right."""

    def __init__(self, url: str, *, pool_size: int = POOL_SIZE) -> None:
        self.url = url
        self.engine = _engine(url, pool_size)
        self.dialect = self.engine.dialect.name
        # SQLite has one writer. Waiting for it here, in turn, is fair; SQLite's own busy handler polls.
        self._writer: Any = threading.Lock() if self.dialect == "sqlite" else nullcontext()
        self._batches = self.engine.execution_options(penstock_batch=True)
        self._statements: dict[tuple[str, str], Any] = {}
        self._bulks: dict[Any, _Bulk | _Joined | _Grouped] = {}
        self._selects: dict[Any, sa.Select[Any]] = {}

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction and commit it; again if the database asks for that (deadlock, lost race).

        Raises:
            LedgerUnavailable: the database cannot be reached or stays locked. Nothing was written.
        """
        for tries in range(1, _TRIES + 1):
            try:
                with self._writer, self._batches.begin() as connection:
                    return work(connection)
            except IntegrityError:
                # Another process inserted the same row first; `work` reads it the next time.
                if tries == _TRIES:
                    raise
            except DBAPIError as error:
                if not _retried(error) or tries == _TRIES:
                    raise self._wrapped(error) from error
            except sa.exc.TimeoutError as error:  # of the pool: whatever it is for, nothing was written
                raise LedgerUnavailable(f"the ledger at {redact_url(self.url)} is not available: {error}") from error
            time.sleep(random.uniform(0, 0.01 * 2**tries))
        raise AssertionError("unreachable")

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` without a transaction of its own.

        Raises:
            LedgerUnavailable: the database cannot be reached, or `penstock db upgrade` was not run.
        """
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return work(connection)
        except DBAPIError as error:
            raise self._wrapped(error) from error

    def execute_many(self, connection: sa.Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run an INSERT or UPDATE for each row, and return how many rows of the table it met.

        As `connection.execute(statement, rows)`, at half its cost: SQLAlchemy compiles the statement, once, and the
        driver gets the rows without a walk through the type of each value.

        Arguments:
            statement: kept by the caller, such as a module's constant or what `insert_ignore` returns.
            rows: at least one; all of the same columns.
        """
        key = (statement, tuple(rows[0]))
        if (bulk := self._bulks.get(key)) is None:
            make: type[_Bulk | _Joined | _Grouped] = _BULKS.get(self.dialect, _Bulk)
            bulk = self._bulks[key] = make(statement, self.engine.dialect, list(rows[0]))
        return bulk.execute(connection, rows)

    def insert(self, table: sa.Table) -> Any:
        """A plain INSERT."""
        return self._statement("insert", table, lambda: sa.insert(table))

    def insert_ignore(self, table: sa.Table) -> Any:
        """An INSERT that leaves rows alone that are there already."""
        return self._statement("insert_ignore", table, lambda: self._insert_ignore(table))

    def upsert(self, table: sa.Table, keep: tuple[str, ...] = ()) -> Any:
        """An INSERT that replaces the columns of a row that is there already, except the key and `keep`."""
        return self._statement(f"upsert {keep}", table, lambda: self._upsert(table, keep))

    def _statement(self, what: str, table: sa.Table, make: Callable[[], Any]) -> Any:
        key = (what, table.name)
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
        """`column IN (values)` with all of them in one parameter where the database can take that apart: a list of
        hundreds of parameters costs as much as what is done with it."""
        return self._among(column, None, self._listed(values))

    def rows_of(
        self, connection: sa.Connection, select: sa.Select[Any], column: sa.Column[str], values: Sequence[str]
    ) -> Sequence[sa.Row[Any]]:
        """The rows of a SELECT whose `column` is among `values`, locked, in an order in which nobody deadlocks.

        As executing that SELECT with `among` and `locked`; but it is built and compiled once.

        Arguments:
            select: kept by the caller, such as a module's constant.
        """
        if (mine := self._selects.get(select)) is None:
            mine = select.where(self._among(column, "penstock_values", None))
            mine = self._selects[select] = mine if self.dialect == "sqlite" else self.locked(mine.order_by(column))
        return connection.execute(mine, {"penstock_values": self._listed(values)}).all()

    def _among(self, column: sa.Column[str], name: str | None, values: Any) -> sa.ColumnElement[bool]:
        if self.dialect == "postgresql":
            return column == sa.func.any(sa.bindparam(name, values, type_=sa.ARRAY(sa.String)))
        if self.dialect == "sqlite":
            each = sa.func.json_each(sa.bindparam(name, values, type_=sa.String)).table_valued("value")
            return column.in_(sa.select(each.c.value))
        return column.in_(sa.bindparam(name, values, type_=sa.String, expanding=True))

    def _listed(self, values: Sequence[str]) -> Any:
        return json.dumps(values) if self.dialect == "sqlite" else list(values)

    def locked(self, statement: sa.Select[Any], *, skip: bool = False) -> sa.Select[Any]:
        """The SELECT with its rows locked; on SQLite the whole transaction is the lock already."""
        return statement if self.dialect == "sqlite" else statement.with_for_update(skip_locked=skip)

    def close(self) -> None:
        """Close the connections; those that another thread still uses, when it is done with them.

        It may be used again, and connects anew then.
        """
        pool = self.engine.pool
        self.engine.dispose(close=False)  # first: from here on `_close_late` closes what comes back to the old pool
        pool.dispose()

    def _wrapped(self, error: DBAPIError) -> Exception:
        text = str(error.orig).strip().splitlines()[0] if error.orig is not None else str(error)
        where = redact_url(self.url)
        lowered = text.lower()
        if "no such table" in lowered or "does not exist" in lowered or "doesn't exist" in lowered:
            return LedgerUnavailable(f"the ledger at {where} is not set up; run: penstock db upgrade ({text})")
        if self.is_away(error):
            return LedgerUnavailable(f"the ledger at {where} is not available: {text}")
        return error

    def is_away(self, error: DBAPIError) -> bool:
        """Whether an error of this database's says only that it cannot be reached, or stays locked."""
        text = str(error.orig).lower()
        return (
            error.connection_invalidated
            or isinstance(error, InterfaceError)
            or (isinstance(error, OperationalError) and any(word in text for word in _UNAVAILABLE_WORDS))
        )


def insert_into(table: sa.Table, dialect: str) -> Any:
    """The dialect's own INSERT. Only its module is loaded: each takes memory."""
    name = "mysql" if dialect == "mariadb" else dialect
    return importlib.import_module(f"sqlalchemy.dialects.{name}").insert(table)


class _Bulk:
    """An INSERT or UPDATE for each of many rows: compiled once, and what the rows need on their way to the driver."""

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        self.sql = str(compiled)
        self.order: list[str] | None = compiled.positiontup
        self._constants = {name: value for name, value in compiled.params.items() if name not in columns}
        self.types = {name: compiled.binds[name].type for name in columns}
        # Of the ledger's types only times differ from what drivers take as it is.
        self._times = [name for name, type_ in self.types.items() if isinstance(type_, UtcDateTime)]
        self._time = partial(UtcDateTime().process_bind_param, dialect=dialect)

    def execute(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        return connection.exec_driver_sql(self.sql, self.bound(rows)).rowcount

    def bound(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The rows as the driver takes them: lists in the order of the marks, or dicts by their names."""
        if self.order is None:
            named = [{**self._constants, **row} for row in rows]
            for name in self._times:
                for values in named:
                    values[name] = self._time(values[name])
            return named
        whole = [{**self._constants, **row} for row in rows] if self._constants else rows
        order = self.order
        ordered = [[row[name] for name in order] for row in whole]
        for place in [place for place, name in enumerate(order) if name in self._times]:
            before = text = None
            for bound in ordered:
                if (time := bound[place]) is not before:  # a batch's jobs share most of theirs
                    before, text = time, self._time(time)
                bound[place] = text
        return ordered


class _Joined:
    """An INSERT or UPDATE of many rows as one statement, which takes them apart from one JSON text; for PostgreSQL.

    It runs an UPDATE a row at ten times the cost of one for all.
    """

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        types = _Bulk(statement, dialect, columns).types
        objects = sa.cast(sa.bindparam("penstock_rows", type_=sa.Text), sa.JSON)
        typed = [sa.column(name, types[name]) for name in columns]
        rows = sa.func.json_to_recordset(objects).table_valued(*typed).render_derived("penstock_rows", with_types=True)
        if isinstance(statement, sa.Insert):
            select = sa.select(*(rows.c[name] for name in columns))
            joined: Any = statement.from_select(columns, select, include_defaults=False)
        else:
            joined = _with_columns(statement, dict(rows.c))
        self._bulk = _Bulk(joined, dialect, ["penstock_rows"])

    def execute(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        return self._bulk.execute(connection, [{"penstock_rows": to_json(rows).decode()}])


class _Grouped:
    """An INSERT or UPDATE of many rows as statements of dozens of them, for SQLite.

    Its driver lets go of the interpreter for every statement and then waits to get it back: beside a busy thread that
    costs more than the statement.
    """

    _SIZES = (64, 16, 4, 1)

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        self._rows = _Bulk(statement, dialect, columns)
        if isinstance(statement, sa.Insert):
            before, marks, after = re.split(r"(?<=VALUES )(\([?, ]+\))", self._rows.sql)
            constants: list[Any] = []
        else:  # FROM takes values, too, and calls their columns so
            typed = [(f"column{number}", self._rows.types[name]) for number, name in enumerate(columns, 1)]
            values = sa.table("penstock_rows", *(sa.column(*one) for one in typed))
            joined = _with_columns(statement, dict(zip(columns, values.c, strict=True))).compile(dialect=dialect)
            before, after = str(joined).split("FROM penstock_rows")
            before, after = f"{before}FROM (VALUES ", f") AS penstock_rows{after}"
            marks = f"({', '.join('?' * len(columns))})"
            constants = [joined.params[name] for name in joined.positiontup]
            self._rows.order = columns
        self._head, self._tail = constants[: before.count("?")], constants[before.count("?") :]
        self._statements = {size: before + ", ".join([marks] * size) + after for size in self._SIZES}

    def execute(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        bound = self._rows.bound(rows)
        met = start = 0
        for size, statement in self._statements.items():
            while start + size <= len(bound):
                values = chain.from_iterable(bound[start : start + size])
                met += connection.exec_driver_sql(statement, (*self._head, *values, *self._tail)).rowcount
                start += size
        return met


_BULKS: dict[str, type[_Joined | _Grouped]] = {"postgresql": _Joined, "sqlite": _Grouped}


def _with_columns(statement: Any, columns: Mapping[str, Any]) -> Any:
    """The statement with columns of some other rows in the place of the parameters that are called like them."""

    def column(element: Any, **_options: Any) -> Any:
        return columns.get(element.key) if isinstance(element, sa.BindParameter) else None

    return replacement_traverse(statement, {}, column)


def _engine(url: str, pool_size: int) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigError(f"database_url {redact_url(url)!r} is no database URL: {error}") from error
    # Payloads stay out of error messages, and so out of logs.
    hidden: dict[str, Any] = {"hide_parameters": True}
    options = hidden | {"pool_size": pool_size, "max_overflow": pool_size}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            options = hidden | {"pool_size": pool_size, "max_overflow": pool_size}
        else:
            options = hidden | {"poolclass": sa.pool.StaticPool, "connect_args": {"check_same_thread": False}}
    elif parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() == "psycopg":
        # BEGIN is ours, below.
        options |= {"connect_args": POSTGRES_ARGUMENTS, "isolation_level": "AUTOCOMMIT"}
    elif parsed.get_backend_name() in ("mysql", "mariadb"):
        # Read committed: with MySQL's default, SELECT … FOR UPDATE also locks the gaps and claims deadlock.
        options |= {"isolation_level": "READ COMMITTED", "connect_args": {"connect_timeout": 5}}
    try:
        engine = sa.create_engine(parsed, **options)
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"database_url {redact_url(url)!r}: its driver is not installed ({error}); "
            "install penstock[postgres] or penstock[mysql]"
        ) from error
    tune(engine)
    _close_late(engine)
    if engine.dialect.name != "sqlite":
        _ping_idle(engine)
    if "isolation_level" in options and engine.dialect.name == "postgresql":
        _begin_at_once(engine)
    return engine


def _close_late(engine: sa.Engine) -> None:
    """Close a connection that comes back to a pool which its engine has no more; nobody else would."""

    @event.listens_for(engine, "connect")
    def on_connect(_connection: Any, record: Any) -> None:
        record.info["pool"] = engine.pool

    @event.listens_for(engine, "checkin")
    def on_checkin(_connection: Any, record: Any) -> None:
        if record.info.get("pool") is not engine.pool:
            record.close()


def _ping_idle(engine: sa.Engine) -> None:
    """SQLAlchemy's `pool_pre_ping`, without a round trip for each transaction of those that follow one another."""

    @event.listens_for(engine, "checkin")
    def on_checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def on_checkout(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", time.monotonic()) < _PING_AFTER_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except Exception as error:
            raise sa.exc.InvalidatePoolError from error  # it connects anew


def _begin_at_once(engine: sa.Engine) -> None:
    """On PostgreSQL: BEGIN and what a transaction is to have in one round trip; psycopg takes one each."""

    @event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if options.get("penstock_batch"):
            # Until PostgreSQL has first analyzed a new table, it reads all of it to find a batch's few hundred ids.
            connection.exec_driver_sql("BEGIN; SET LOCAL enable_seqscan = off")
        elif "isolation_level" not in options:  # given: psycopg begins it, or there is to be none
            connection.exec_driver_sql("BEGIN")


def tune(engine: sa.Engine) -> None:
    """Make SQLite fit for several processes; other databases are as they should be."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_SQLITE_BUSY_SECONDS * 1000}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = FULL")  # what is acknowledged after a commit must be on disk
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        # Taking the write lock first: a read that turns into a write fails at once instead of waiting its turn.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def _write_ahead(cursor: Any) -> None:
    """Switch a file to its write-ahead log. Of several that do so at once on a new one SQLite tells some that it is
    locked, without waiting."""
    deadline = time.monotonic() + _SQLITE_BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))
        else:
            return


def _retried(error: DBAPIError) -> bool:
    code: Any = getattr(error.orig, "sqlstate", None)
    if code is None and error.orig is not None and error.orig.args:
        code = error.orig.args[0]
    return code in _RETRIED
