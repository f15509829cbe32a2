"""`ctx.session`: a transaction in the ledger's database that commits together with "succeeded".

The handler's writes and the job's outcome are one commit: a crash before it leaves neither, a crash after it both, so
the effect happens once however often the job is delivered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

from penstock.config.errors import ConfigError, LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.engine import POSTGRES_ARGUMENTS, configure_sqlite
from penstock.ledger.transitions.outcome import AttemptOutcome, FenceLost, write_outcomes

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

POOL_SIZE = 10
"""Connections kept for coroutines, and as many for threads; at most as many again for a moment. Handlers beyond these
wait for up to half a minute. The ledger has its own: handlers that hold all of these do not keep it from recording."""
_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}


class Sessions:
    """Opens the sessions of a worker's attempts, on its own connections, apart from the ledger's pool."""

    def __init__(self, database: Database, worker: str) -> None:
        self._database, self._worker = database, worker
        self._async_engine: AsyncEngine | None = None
        self._sync = Database(database.url, pool_size=POOL_SIZE)
        event.listen(self._sync.engine, "handle_error", self._mark)

    def open(self) -> Session:
        from sqlalchemy.orm import Session  # imported lazily: only workers whose handlers use it pay for its memory

        return Session(self._sync.engine, expire_on_commit=False)

    def open_async(self) -> AsyncSession:
        """Raises ConfigError where the database has no asyncio driver here."""
        from sqlalchemy.ext.asyncio import AsyncSession  # imported lazily: it needs greenlet

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
        self._sync.close()

    def is_outage(self, error: BaseException) -> bool:
        """Whether an attempt ended only because the ledger is unavailable, to its session or to `ctx.once`."""
        return isinstance(error, LedgerUnavailable) or getattr(error, "ledger_is_unavailable", False)

    def _mark(self, context: sa.ExceptionContext) -> None:
        # Marked by the engine that raised it: a handler may speak to databases of its own.
        error = context.sqlalchemy_exception
        if isinstance(error, sa.exc.DBAPIError) and self._database.is_unavailable(error):
            error.ledger_is_unavailable = True  # type: ignore[attr-defined]

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
            url = sa.make_url(self._database.url).set(drivername=driver)
            options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": POOL_SIZE}
            if self._database.dialect == "postgresql":
                options |= {"pool_pre_ping": True, "connect_args": POSTGRES_ARGUMENTS}
            self._async_engine = create_async_engine(url, **options)
            configure_sqlite(self._async_engine.sync_engine)
            event.listen(self._async_engine.sync_engine, "handle_error", self._mark)
        return self._async_engine
