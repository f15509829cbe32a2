"""The query of a report: a snapshot that cannot write, a cursor at the server, and verdicts about errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Double,
    Engine,
    Numeric,
    Text,
    bindparam,
    collate,
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.types import TypeEngine

from penstock.config.errors import DatabaseUnavailable
from penstock.config.sections.builtin.reports import ReportSettings
from penstock.ledger.sql.faults import LASTING, Fault, code_of, describe, fault_of
from penstock.workers.builtin.reports.watch import Watch, watched
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Permanent

BATCH = 1000
"""Rows fetched at a time."""
_MARGIN_SECONDS = 30
"""The server's own limit is later than ours: it is for workers that died."""
_WRITES = ("25006", 1792, 8)
"""Codes of a write in a read-only transaction: PostgreSQL, MySQL and MariaDB, SQLite."""
_TYPES: dict[str, type[TypeEngine[Any]]] = {
    "str": Text,
    "int": BigInteger,
    "float": Double,
    "decimal": Numeric,
    "date": Date,
    "datetime": DateTime,
    "bool": Boolean,
}


class _Tenant(Text):
    """The tenant as MySQL and MariaDB must compare it: exactly. To their defaults `acme` and `ACME ` are equal."""

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[str]:
        assert self.collation is not None
        return collate(bindvalue, self.collation)


class Snapshot:
    """A read-only transaction, in which all queries see the same rows.

    Arguments:
        name: of the report, for messages.
    """

    def __init__(self, connection: Connection, ctx: Context, report: ReportSettings, name: str, watch: Watch) -> None:
        self._connection, self._ctx, self._report, self._name, self._watch = connection, ctx, report, name, watch

    def count(self, sql: str, parameters: dict[str, Any]) -> int | None:
        """Count the rows; None if the query cannot be a subquery, such as with two columns of the same name."""
        binds = self._binds()
        query = text(f"SELECT COUNT(*) FROM ({_bare(sql)}\n) AS counted").bindparams(*binds)  # noqa: S608  # the operator's
        with self._verdicts():
            try:
                with self._connection.begin_nested():
                    return int(self._connection.execute(query, parameters).scalar_one())
            except SQLAlchemyError as error:
                if fault_of(error) in LASTING:
                    return None
                raise

    @contextmanager
    def rows(self, sql: str, parameters: dict[str, Any]) -> Iterator[tuple[list[str], Iterator[Sequence[Any]]]]:
        """Run a query with a cursor that stays at the server, where the driver has one.

        Yields the names of the columns, and the rows in batches. Errors as `open_snapshot` describes them.
        """
        columns = {name: _TYPES[kind]() for name, kind in self._report.columns.items()}
        query: Any = text(_bare(sql)).bindparams(*self._binds())
        if columns:
            query = query.columns(**columns)
        with self._verdicts():
            streamed = self._connection.execution_options(stream_results=True, max_row_buffer=BATCH)
            result = streamed.execute(query, parameters)
        if not result.returns_rows:
            raise Permanent(f"report {self._name!r}: its sql returns no rows; write a SELECT")
        try:
            yield [str(name) for name in result.keys()], self._batches(result)  # noqa: SIM118  # no mapping
        except BaseException as error:
            if not isinstance(error.__cause__, DBAPIError):
                self._watch.cancel()  # else the server would go on, until it notices that no one listens
            raise
        finally:
            # PyMySQL reads here all that the server still sends: after a cancel, little.
            with suppress(SQLAlchemyError):
                result.close()

    def _batches(self, result: Any) -> Iterator[Sequence[Any]]:
        batches = result.partitions(BATCH)
        while True:
            self._ctx.check_cancelled()
            with self._verdicts():
                if self._watch.late:
                    raise TimeoutError
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _binds(self) -> list[BindParameter[Any]]:
        binds = [bindparam(name, type_=_TYPES[each.type]()) for name, each in self._report.parameters.items()]
        if self._report.binds_tenant:
            binds.append(bindparam("tenant", type_=_tenant_type(self._connection.dialect)))
        return binds

    @contextmanager
    def _verdicts(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._ctx.check_cancelled()
            if self._watch.late:
                raise TimeoutError(
                    f"report {self._name!r}: its query took longer than query_timeout_seconds "
                    f"({self._report.query_timeout_seconds:g}); let it read less, add an index, or raise the limit"
                ) from error
            raise _verdict(self._name, error) from error


@contextmanager
def open_snapshot(engine: Engine, ctx: Context, report: ReportSettings, name: str) -> Iterator[Snapshot]:
    """A read-only transaction that is rolled back. A query that is cut short is cancelled at the server, too.

    Arguments:
        name: of the report, for messages.

    Raises:
        Permanent: the database does not take the sql or its values, such as a division by zero, or it writes.
        DatabaseUnavailable: the database is down, full or out of connections.
        TimeoutError: the query took longer than `query_timeout_seconds`.
        JobCancelled: the job was cancelled, its time is up, or its worker stops.
    """
    try:
        connection = engine.connect()
    except SQLAlchemyError as error:
        raise _verdict(name, error) from error
    with connection:
        try:
            ctx.check_cancelled()
            _begin(connection, _seconds_left(ctx, report))
            with watched(connection, ctx, report.query_timeout_seconds) as watch:
                yield Snapshot(connection, ctx, report, name, watch)
            if watch.fired:
                connection.invalidate()
            else:
                _end(connection)
        except BaseException as error:
            connection.invalidate()
            if isinstance(error, SQLAlchemyError):
                raise _verdict(name, error) from error
            raise


def _verdict(name: str, error: Exception) -> Exception:
    """The error to raise instead: whether another try of the job may help."""
    if isinstance(error, DBAPIError) and code_of(error) in _WRITES:
        return Permanent(f"report {name!r}: its sql writes ({describe(error)}); a report may only read")
    if not isinstance(error, (SQLAlchemyError, ValueError, TypeError, ArithmeticError)):
        return error
    match fault_of(error):
        case Fault.DATA | Fault.SCHEMA | Fault.OTHER:
            return Permanent(f"report {name!r}: the database does not take the report's sql: {describe(error)}")
        case Fault.TIMEOUT:
            return error
        case _:
            return DatabaseUnavailable(f"report {name!r}: the database does not answer now: {describe(error)}")


def _seconds_left(ctx: Context, report: ReportSettings) -> int | None:
    """The limit for the server, in seconds; None: without one."""
    limits = [] if report.query_timeout_seconds is None else [report.query_timeout_seconds]
    if ctx.deadline is not None:
        limits.append((ctx.deadline - datetime.now(UTC)).total_seconds())
    return int(max(min(limits), 0)) + _MARGIN_SECONDS if limits else None


def _begin(connection: Connection, seconds: int | None) -> None:
    """Begin a transaction that reads one state of the database and writes nothing, and limit its statements."""
    match connection.dialect.name:
        case "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            settings = {} if seconds is None else {"statement_timeout": f"{seconds}s"}
            if (connection.dialect.server_version_info or ()) >= (14,):
                settings["client_connection_check_interval"] = "5s"  # the query of a killed worker ends
            for name, value in settings.items():
                try:
                    with connection.begin_nested():
                        connection.execute(text("SELECT set_config(:n, :v, true)"), {"n": name, "v": value})
                except DBAPIError as error:  # the server's system cannot check connections
                    if fault_of(error) not in LASTING:
                        raise
        case "mysql" | "mariadb":
            run = connection.exec_driver_sql
            if seconds is not None:
                run(f"SET SESSION {_server_limit(connection, seconds)}")
            run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            run("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        case "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = 1")
            connection.exec_driver_sql("BEGIN")


def _end(connection: Connection) -> None:
    """Roll back, and take back what a pooled connection would keep."""
    connection.rollback()
    match connection.dialect.name:
        case "mysql" | "mariadb":
            connection.exec_driver_sql(f"SET SESSION {_server_limit(connection, None)}")
        case "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = 0")


def _server_limit(connection: Connection, seconds: int | None) -> str:
    dialect: Any = connection.dialect
    if dialect.is_mariadb:
        return f"max_statement_time = {'DEFAULT' if seconds is None else seconds}"
    return f"max_execution_time = {'DEFAULT' if seconds is None else seconds * 1000}"


def _tenant_type(dialect: Any) -> Text:
    if dialect.name not in ("mysql", "mariadb"):
        return Text()
    return _Tenant(collation="utf8mb4_nopad_bin" if dialect.is_mariadb else "utf8mb4_0900_bin")


def _bare(sql: str) -> str:
    return sql.strip().rstrip(";")
