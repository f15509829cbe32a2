"""SQLAlchemy engines, set up for SQLite, PostgreSQL and MySQL or MariaDB."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from penstock.config.private_files import tighten
from penstock.ledger.sql.faults import Fault, fault_of
from penstock.ledger.sql.urls import make_folder, parse_url, split_pooler, without_driver

POSTGRES_ARGUMENTS = {
    "connect_timeout": 5,
    # Without these a client waits two hours, or a quarter of one, for a server that vanished.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_PING_AFTER_SECONDS = 1.0
"""A connection that was used more recently counts as alive."""
_SQLITE_BUSY_SECONDS = 10


def make_engine(
    url: str, *, private: bool = True, answer_seconds: int | None = None, name: str | None = None, **pool: Any
) -> sa.Engine:
    """The engine of a database.

    Arguments:
        private: see `configure_sqlite`.
        answer_seconds: how long MySQL or MariaDB may take to answer, if the URL does not say so (`read_timeout`,
            `write_timeout`). None: as long as it takes.
        name: of the connections, in the database's list of them, unless the URL has one.
        pool: options of `create_engine` about its pool.

    Raises:
        ConfigError: the URL is wrong, or its driver is not installed.
    """
    parsed, postgres_arguments = split_pooler(parse_url(url))
    # Payloads stay out of error messages, and so out of logs.
    hidden: dict[str, Any] = {"hide_parameters": True}
    options = hidden | pool
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            make_folder(Path(parsed.database).parent, url)
        else:
            options = hidden | {"poolclass": sa.pool.StaticPool, "connect_args": {"check_same_thread": False}}
    elif parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() == "psycopg":
        # We send BEGIN ourselves, below.
        named = {"application_name": name} if name is not None and "application_name" not in parsed.query else {}
        options |= {"connect_args": POSTGRES_ARGUMENTS | postgres_arguments | named, "isolation_level": "AUTOCOMMIT"}
    elif parsed.get_backend_name() in ("mysql", "mariadb"):
        # Read committed: with MySQL's default, SELECT … FOR UPDATE also locks the gaps and claims deadlock.
        options |= {"isolation_level": "READ COMMITTED", "connect_args": _mysql_arguments(parsed, answer_seconds)}
    try:
        engine = sa.create_engine(parsed, **options)
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise without_driver(url, error) from error
    configure_sqlite(engine, private=private)
    _close_late(engine)
    discard_faulty(engine)
    if engine.dialect.name != "sqlite":
        _ping_idle(engine)
    if "isolation_level" in options and engine.dialect.name == "postgresql":
        _begin_at_once(engine)
    return engine


def _mysql_arguments(url: sa.URL, answer_seconds: int | None) -> dict[str, int]:
    """Time limits of a connection, without those that the URL has: arguments take precedence over it.

    The limit for connecting ends before the handshake, in which a stalled server says nothing.
    """
    limits = {"connect_timeout": 5}
    if answer_seconds is not None:
        limits |= {"read_timeout": answer_seconds, "write_timeout": answer_seconds}
    return {name: seconds for name, seconds in limits.items() if name not in url.query}


def _close_late(engine: sa.Engine) -> None:
    """Close a connection that returns to a pool its engine has replaced. Nothing else would close it."""

    @event.listens_for(engine, "connect")
    def on_connect(_connection: Any, record: Any) -> None:
        record.info["pool"] = engine.pool

    @event.listens_for(engine, "checkin")
    def on_checkin(_connection: Any, record: Any) -> None:
        if record.info.get("pool") is not engine.pool:
            record.close()


def discard_faulty(engine: sa.Engine) -> None:
    """Discard connections after an error that a new connection may not have.

    After a failover every old connection leads to a server that is read-only, and settings of a database or role hold
    for the connections that were made under them.
    """
    if isinstance(engine.pool, sa.pool.StaticPool):  # the one connection of a database in memory is that database
        return

    @event.listens_for(engine, "handle_error")
    def on_error(context: sa.ExceptionContext) -> None:
        fault = None if context.sqlalchemy_exception is None else fault_of(context.sqlalchemy_exception)
        if fault is Fault.OUTAGE:
            context.is_disconnect = True  # the others of the pool are discarded, too
        elif fault is Fault.TIMEOUT and context.connection is not None:
            context.connection.connection.invalidate(soft=True)  # once it is returned: its transaction may go on


def _ping_idle(engine: sa.Engine) -> None:
    """Ping connections that were idle: SQLAlchemy's `pool_pre_ping` without a round trip for each of many transactions
    in a row."""

    @event.listens_for(engine, "checkin")
    def on_checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def on_checkout(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", time.monotonic()) < _PING_AFTER_SECONDS:
            return
        try:
            _ping(engine, connection)
        except Exception as error:
            raise sa.exc.InvalidatePoolError from error  # the pool connects again


def _ping(engine: sa.Engine, connection: Any) -> None:
    """Ask for an answer: of PostgreSQL for the end of a pipeline without statements, since `SELECT 1` would be a
    transaction, and what is idle for long makes most of its transactions that way."""
    if engine.driver == "psycopg":
        from psycopg import capabilities

        if capabilities.has_pipeline():
            with connection.pipeline():
                return
    engine.dialect.do_ping(connection)


def _begin_at_once(engine: sa.Engine) -> None:
    """Send BEGIN and a transaction's settings to PostgreSQL in one round trip; psycopg takes one for each."""

    @event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if options.get("penstock_batch"):
            # Until PostgreSQL has first analyzed a new table, it reads all of it to find a batch's few hundred ids.
            connection.exec_driver_sql("BEGIN; SET LOCAL enable_seqscan = off")
        elif "isolation_level" not in options:  # if given, psycopg sends BEGIN, or it is AUTOCOMMIT
            connection.exec_driver_sql("BEGIN")


def configure_sqlite(engine: sa.Engine, *, private: bool = True) -> None:
    """Make SQLite fit for several processes, and its files for their owner alone. Does nothing for other databases.

    Arguments:
        private: False: the files are another program's, and keep their mode.
    """
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we send BEGIN ourselves, below
        if private:
            _tighten(engine.url)
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_SQLITE_BUSY_SECONDS * 1000}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA secure_delete = ON")  # what is erased leaves no copy in free pages
        cursor.execute("PRAGMA synchronous = FULL")  # what is acknowledged after a commit must be on disk
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        # Taking the write lock first: a read that turns into a write fails at once instead of waiting its turn.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def _tighten(url: sa.URL) -> None:
    """Take a file of SQLite's from all others. Its log and index, made later, get its mode."""
    if url.database and url.database != ":memory:":
        for suffix in ("", "-wal", "-shm", "-journal"):
            tighten(Path(url.database + suffix))


def _write_ahead(cursor: Any) -> None:
    """Switch a file to its write-ahead log, trying again while it is locked.

    SQLite does not wait here: of several processes that do this on a new file at once, some get "locked" immediately.
    """
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
