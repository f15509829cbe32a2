"""`ctx.session`: a transaction in the ledger's database that commits together with "succeeded".

The handler's writes and the job's outcome are one commit: a crash before it leaves neither, a crash after it both, so
the effect happens once however often the job is delivered.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import event

from penstock.config.errors import ConfigError, LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.engine import POSTGRES_ARGUMENTS, configure_sqlite, discard_faulty, make_engine
from penstock.ledger.sql.faults import LASTING, Fault, fault_of, is_lost_transaction
from penstock.ledger.sql.pools import patient_options
from penstock.ledger.sql.urls import split_pooler
from penstock.ledger.transitions.outcome import AttemptOutcome, FenceLost, write_outcomes
from penstock.workers.handlers.registry import Handler

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}

_MARK = "penstock_fault"
_MOST_RUNS = 20


def import_sessions(handlers: Iterable[Handler], pool: str) -> None:
    """Import what the sessions of these handlers need; call it before any thread runs.

    Imported by the first handler that opens a session, SQLAlchemy's ORM blocks the event loop, and statements of other
    threads fail meanwhile: it registers itself with SQLAlchemy before it is whole.

    Arguments:
        pool: the worker's, the setting of that name.
    """
    users = {handler.mode_in(pool) for handler in handlers if handler.context is not None and handler.kind.track}
    if users - {"child", "process"}:
        importlib.import_module("sqlalchemy.orm")
    if "async" in users:
        importlib.import_module("sqlalchemy.ext.asyncio")


class Sessions:
    """Opens the sessions of a worker's attempts, on its own connections: handlers that hold all of these do not keep
    the ledger from recording.

    Arguments:
        most: connections for threads, and as many for coroutines. Handlers beyond these wait for one.
    """

    def __init__(self, database: Database, worker: str, most: int) -> None:
        self._database, self._worker, self._most = database, worker, most
        self._async_engine: AsyncEngine | None = None
        self._sync = make_engine(database.url, **patient_options(most))
        event.listen(self._sync, "handle_error", self._mark)

    def open(self) -> Session:
        from sqlalchemy.orm import Session  # not at the top: only workers whose handlers may use it pay for its memory

        return Session(self._sync, expire_on_commit=False)

    def open_async(self) -> AsyncSession:
        """Raises ConfigError where the database has no asyncio driver here."""
        from sqlalchemy.ext.asyncio import AsyncSession  # not at the top: it needs greenlet

        return AsyncSession(self._engine(), expire_on_commit=False)

    def commit(self, session: Session, outcome: AttemptOutcome) -> None:
        """Write the outcome and commit. Raises FenceLost."""
        self._write(session.connection(), outcome)
        session.commit()

    async def commit_async(self, session: AsyncSession, outcome: AttemptOutcome) -> None:
        """Write the outcome and commit. Raises FenceLost."""
        await (await session.connection()).run_sync(lambda connection: self._write(connection, outcome))
        await session.commit()

    async def close(self) -> None:
        if self._async_engine is not None:
            await self._async_engine.dispose()
        self._sync.dispose()

    def is_outage(self, error: BaseException, fence: int) -> bool:
        """Whether an attempt ended only because the ledger is unavailable, to its session or to `ctx.once`.

        Such an error counts also if the handler raised another one because of it, or met it in one of its tasks.

        Arguments:
            fence: of the claim, which counts the runs. A statement that is too slow in each of many is the handler's.
        """
        return any(
            isinstance(each, LedgerUnavailable)
            or is_lost_transaction(each)
            or (fault := getattr(each, _MARK, None)) is Fault.OUTAGE
            or (fault is not None and fence <= _MOST_RUNS)
            for each in _causes(error)
        )

    def _mark(self, context: sa.ExceptionContext) -> None:
        # Marked by the engine that raised it: a handler may speak to databases of its own.
        error = context.sqlalchemy_exception
        if error is not None and (fault := fault_of(error)) not in LASTING:
            setattr(error, _MARK, fault)

    def _write(self, connection: sa.Connection, outcome: AttemptOutcome) -> None:
        [kept] = write_outcomes(connection, self._database, [outcome], self._worker)
        if not kept:
            raise FenceLost

    def _engine(self) -> AsyncEngine:
        if self._async_engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            driver = _ASYNC_DRIVERS.get(self._database.dialect)
            if driver is None:
                raise ConfigError(
                    f"ctx.session in an async handler needs SQLite or PostgreSQL, not {self._database.dialect}; "
                    "write the handler as a plain def"
                )
            url, postgres_arguments = split_pooler(sa.make_url(self._database.url).set(drivername=driver))
            options = patient_options(self._most, is_async=True)
            if self._database.dialect == "postgresql":
                options |= {"pool_pre_ping": True, "connect_args": POSTGRES_ARGUMENTS | postgres_arguments}
            self._async_engine = create_async_engine(url, **options)
            configure_sqlite(self._async_engine.sync_engine)
            discard_faulty(self._async_engine.sync_engine)
            event.listen(self._async_engine.sync_engine, "handle_error", self._mark)
        return self._async_engine


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, the errors that led to it, and those that it groups; each once."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += (each.__cause__, each.__context__)
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
