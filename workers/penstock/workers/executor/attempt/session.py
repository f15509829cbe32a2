"""`ctx.session`: a transaction in the ledger's database that commits together with "succeeded".

What a handler writes through it and the job's outcome are one commit: a crash before it leaves neither, a crash after
it both, so the effect happens once however often the job is delivered.
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
wait for up to half a minute. Not the ledger's own: handlers that hold all of those would keep it from recording."""
_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}


class Sessions:
    """Opens the sessions of a worker's attempts, on connections of its own beside the ledger's pool."""

    def __init__(self, database: Database, worker: str) -> None:
        self._database, self._worker = database, worker
        self._async_engine: AsyncEngine | None = None
        in_memory = isinstance(database.engine.pool, sa.pool.StaticPool)  # where another engine is another database
        self._own = None if in_memory else Database(database.url, pool_size=POOL_SIZE)
        self._sync_engine = database.engine if self._own is None else self._own.engine
        event.listen(self._sync_engine, "handle_error", self._mark)

    def open(self) -> Session:
        from sqlalchemy.orm import Session  # with the first use: workers without it do without its memory

        return Session(self._sync_engine, expire_on_commit=False)

    def open_async(self) -> AsyncSession:
        """Raises ConfigError where the database has no asyncio driver here."""
        from sqlalchemy.ext.asyncio import AsyncSession  # loaded with the first use: it needs greenlet

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
        if self._own is not None:
            self._own.close()

    def lost(self, error: BaseException) -> bool:
        """Whether what ended an attempt is only that the ledger is away: an error of a session's, or of `ctx.once`."""
        return isinstance(error, LedgerUnavailable) or getattr(error, "ledger_is_away", False)

    def _mark(self, context: sa.ExceptionContext) -> None:
        # By the engine that raised it, as a handler may speak to databases of its own.
        error = context.sqlalchemy_exception
        if isinstance(error, sa.exc.DBAPIError) and self._database.is_unavailable(error):
            error.ledger_is_away = True  # type: ignore[attr-defined]

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
