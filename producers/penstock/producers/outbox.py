"""The outbox: jobs written into the caller's own transaction, which a dispatcher sends once that is committed.

This module needs SQLAlchemy; `import penstock.producers` does not load it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack, overload

import sqlalchemy as sa
from sqlalchemy.orm import Session, registry, scoped_session

from penstock.config.loaded import loaded
from penstock.ledger.sql.tables import OUTBOX_TRIGGER, outbox, outbox_metadata
from penstock.producers.enqueue.envelopes import target_queue
from penstock.producers.enqueue.options import EnqueueOptions
from penstock.producers.enqueue.outbox_rows import BaseOutbox, Entry, make_entries, make_entry, sealed_entry
from penstock.producers.handles.handles import AsyncJobHandle, JobHandle

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    from penstock.schemas.jobs.job import Job
    from penstock.schemas.wire.codec import Envelope

    SyncTarget = Session | scoped_session[Any] | sa.Connection
    AsyncTarget = AsyncSession | async_scoped_session[Any]

__all__ = ["Outbox", "OutboxEntry", "create_outbox", "drop_outbox", "outbox_metadata"]


class OutboxEntry:
    """A row of the outbox, mapped so that a session writes it with the rest of its unit of work.

    A session that picks its engine by class needs it: `Session(binds={OutboxEntry: engine})`.
    """

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


registry(metadata=outbox_metadata).map_imperatively(OutboxEntry, outbox)


class Outbox(BaseOutbox):
    """Enqueues jobs in a transaction of the caller's, which it never commits. Holds no connection; thread-safe.

    Arguments:
        database_url: the ledger's, for handles; None: as the settings say when a handle first asks.
        max_payload_bytes: the largest job.
        queues: known queues in addition to those that kinds name.
    """

    @overload
    def enqueue(self, session: AsyncTarget, job: Job, **options: Unpack[EnqueueOptions]) -> AsyncJobHandle: ...
    @overload
    def enqueue(self, session: SyncTarget, job: Job, **options: Unpack[EnqueueOptions]) -> JobHandle: ...
    def enqueue(self, session: Any, job: Job, **options: Unpack[EnqueueOptions]) -> Any:
        """Write one job, to be sent if and when the caller's transaction is committed.

        A session adds it to its unit of work, so it is written with the next flush, at the latest by the commit; there
        is nothing to await. A connection writes it at once.

        Arguments:
            session: a Session, AsyncSession, either one scoped, or a Connection.
            options: those of `Producer.enqueue`. Whether a unique job's key is held is decided after the commit: one
                that is refused then is logged, and its handle finds no job.

        Returns a handle, whose id is known before the commit: an AsyncJobHandle for an asynchronous session.

        Raises:
            InvalidJob: the job or an option is wrong (also UnknownQueue, PayloadTooLarge, KindError); nothing was
                written. TypeError: `session` is none.
        """
        return self._write(session, [make_entry(self._builder, job, options)])[0]

    @overload
    def enqueue_many(self, session: AsyncTarget, jobs: Iterable[Job]) -> list[AsyncJobHandle]: ...
    @overload
    def enqueue_many(self, session: SyncTarget, jobs: Iterable[Job]) -> list[JobHandle]: ...
    def enqueue_many(self, session: Any, jobs: Iterable[Job]) -> Any:
        """Write many, in order. All are checked before the first is written.

        Raises:
            As `enqueue`; says which one is wrong, counted from 0.
        """
        return self._write(session, make_entries(self._builder, jobs))

    def add(self, session: Any, envelope: Envelope) -> None:
        """Write a message of another framework's, which is an envelope already, as `enqueue` writes a job's.

        Raises:
            TypeError: `session` is none.
        """
        self._write(session, [sealed_entry(envelope)])

    def _write(self, target: Any, entries: list[Entry]) -> list[Any]:
        asynchronous = _is_async_session(target)
        if asynchronous or isinstance(target, Session | scoped_session):
            target.add_all([OutboxEntry(**row) for _, row in entries])
        elif isinstance(target, sa.Connection):
            if entries:
                _insert(target, [row for _, row in entries])
        else:
            raise TypeError(
                f"enqueue takes a Session, AsyncSession or Connection first, not {type(target).__name__}; "
                "with an AsyncConnection: await connection.run_sync(outbox.enqueue, job)"
            )
        make: Any = AsyncJobHandle if asynchronous else JobHandle
        return [make(envelope.id, envelope.kind, target_queue(envelope), self._ledger) for envelope, _ in entries]


def create_outbox(bind: sa.Engine | sa.Connection) -> None:
    """Make the outbox's table, and on PostgreSQL the trigger that wakes the dispatcher, where they are missing.

    Arguments:
        bind: an engine, or a connection, such as `op.get_bind()` of a migration; its transaction is the caller's.
    """
    if isinstance(bind, sa.Engine):
        with bind.begin() as connection:
            create_outbox(connection)
        return
    existed = sa.inspect(bind).has_table(outbox.name)
    outbox.create(bind, checkfirst=True)
    if existed and bind.dialect.name == "postgresql":
        # A table that an automatically written migration has made comes without.
        missing = "SELECT 1 FROM pg_trigger WHERE tgname = 'penstock_outbox_notify' AND tgrelid = '{}'::regclass"
        if bind.exec_driver_sql(missing.format(outbox.name)).first() is None:
            for statement in OUTBOX_TRIGGER:
                bind.exec_driver_sql(statement)


def drop_outbox(bind: sa.Engine | sa.Connection) -> None:
    """Undo `create_outbox`. Jobs that were not sent yet are lost."""
    if isinstance(bind, sa.Engine):
        with bind.begin() as connection:
            drop_outbox(connection)
        return
    outbox.drop(bind, checkfirst=True)
    if bind.dialect.name == "postgresql":
        bind.exec_driver_sql("DROP FUNCTION IF EXISTS penstock_outbox_notify()")


def _insert(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    insert = sa.insert(outbox)
    dialect = connection.dialect
    if dialect.insert_executemany_returning_sort_by_parameter_order and dialect.name != "sqlite":
        # One INSERT for all, which numbers them in this order.
        connection.execute(insert.returning(outbox.c.position, sort_by_parameter_order=True), rows)
    else:
        connection.execute(insert, rows)


def is_target(target: object) -> bool:
    """Whether `enqueue` can write there."""
    return isinstance(target, Session | scoped_session | sa.Connection) or _is_async_session(target)


def _is_async_session(target: object) -> bool:
    module = loaded("sqlalchemy.ext.asyncio")  # imported wherever a session of its exists
    return module is not None and isinstance(target, module.AsyncSession | module.async_scoped_session)
