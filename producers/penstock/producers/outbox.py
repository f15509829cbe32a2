"""The outbox: jobs written into the caller's own transaction, which a dispatcher sends once that is committed.

This module needs SQLAlchemy; `import penstock.producers` does not load it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, overload

import sqlalchemy as sa
from sqlalchemy.orm import Session, registry, scoped_session

from penstock.config.errors import InvalidJob, UndecodableMessage
from penstock.producers.handles import AsyncJobHandle, JobHandle
from penstock.producers.links import LedgerLink
from penstock.producers.preparation import Duration, Preparation
from penstock.producers.waiting import waiting
from penstock.schemas.kinds import Priority
from penstock.schemas.tables import OUTBOX_TRIGGER, outbox
from penstock.schemas.tables import outbox_metadata as outbox_metadata
from penstock.schemas.unique import Unique, UniquePolicy
from penstock.schemas.wire import HEADER, Envelope

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    from penstock.config.settings import Settings
    from penstock.schemas.jobs import Job

    SyncTarget = Session | scoped_session[Any] | sa.Connection
    AsyncTarget = AsyncSession | async_scoped_session[Any]


class Options(TypedDict, total=False):
    """As in `Producer.enqueue`."""

    delay: Duration | None
    run_at: datetime | None
    priority: Priority | None
    key: str | None
    tenant: str | None
    expires_in: Duration | None
    queue: str | None
    id: str | None
    traceparent: str | None
    unique: UniquePolicy | None
    unique_for: Duration | None
    unique_states: Sequence[str] | None
    debounce: Duration | None


_OF_POLICIES = frozenset({"unique", "unique_for", "unique_states", "debounce"})


class OutboxEntry:
    """A row of the outbox, mapped so that a session writes it with the rest of its unit of work.

    A session that picks its engine by class needs it: `Session(binds={OutboxEntry: engine})`.
    """

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


registry(metadata=outbox_metadata).map_imperatively(OutboxEntry, outbox)

_shared = LedgerLink()
"""Of all outboxes that were made without settings: one may be made for each call."""


class Outbox:
    """Enqueues jobs in a transaction of the caller's, which it never commits. Holds no connection; thread-safe.

    Arguments:
        database_url: the ledger's, for handles; None: as the settings say when a handle first asks.
        max_payload_bytes: the largest job.
        queues: known ones beside those that kinds name.
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        max_payload_bytes: int = 256 * 1024,
        queues: Iterable[str] = (),
        **links: Any,
    ) -> None:
        self._preparation = Preparation(max_payload_bytes, frozenset(queues))
        self._ledger = _shared if database_url is None and not links else LedgerLink(database_url, **links)

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """An outbox as `penstock.toml` and the environment say; reads them now if no settings are given.

        Raises:
            ConfigError: a setting is wrong.
        """
        if settings is None:
            from penstock.config.settings import load_settings

            settings = load_settings()
        return cls(
            database_url=settings.database_url,
            max_payload_bytes=settings.max_payload_bytes,
            queues=settings.queues,
            storage_url=settings.storage_url,
            broker_url=settings.broker_url,
            prefix=settings.prefix,
            timeout_seconds=settings.broker_timeout_seconds,
        )

    @overload
    def enqueue(self, session: AsyncTarget, job: Job, **options: Unpack[Options]) -> AsyncJobHandle: ...
    @overload
    def enqueue(self, session: SyncTarget, job: Job, **options: Unpack[Options]) -> JobHandle: ...
    def enqueue(self, session: Any, job: Job, **options: Unpack[Options]) -> Any:
        """Write one job, to be sent if and when the caller's transaction is committed.

        A session adds it to its unit of work, so it is written with the next flush, at the latest by the commit; there
        is nothing to await. A connection writes it at once.

        Arguments:
            session: a Session, AsyncSession, either one scoped, or a Connection.
            options: those of `Producer.enqueue`. Whether a unique job's key is held is decided after the commit: one
                that is refused then is logged, and its handle tells nothing.

        Returns a handle, whose id is known before the commit: an AsyncJobHandle for an asynchronous session.

        Raises:
            InvalidJob: the job or an option is wrong (also UnknownQueue, PayloadTooLarge, KindError); nothing was
                written. TypeError: `session` is none.
        """
        about: dict[str, Any] = {name: value for name, value in options.items() if name in _OF_POLICIES}
        rest: dict[str, Any] = {name: value for name, value in options.items() if name not in _OF_POLICIES}
        policy = self._preparation.policy(job, key=options.get("key"), **about)
        envelope = self._preparation.envelope(job, policy=policy, **rest)
        return self._write(session, [(envelope, _row(envelope, job.kind().track, policy))])[0]

    @overload
    def enqueue_many(self, session: AsyncTarget, jobs: Iterable[Job]) -> list[AsyncJobHandle]: ...
    @overload
    def enqueue_many(self, session: SyncTarget, jobs: Iterable[Job]) -> list[JobHandle]: ...
    def enqueue_many(self, session: Any, jobs: Iterable[Job]) -> Any:
        """Write many, in order. All are checked before the first is written.

        Raises:
            As `enqueue`; says which one is wrong, counted from 0.
        """
        jobs = list(jobs)
        entries = []
        for number, (job, envelope) in enumerate(zip(jobs, self._preparation.envelopes(jobs), strict=True)):
            kind = job.kind()
            try:
                entries.append((envelope, _row(envelope, kind.track, kind.unique)))
            except InvalidJob as error:
                error.add_note(f"it is number {number} of the batch; nothing was written")
                raise
        return self._write(session, entries)

    def close(self) -> None:
        """Close what handles have opened."""
        self._ledger.close()

    def _write(self, target: Any, entries: list[tuple[Envelope, dict[str, Any]]]) -> list[Any]:
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
        return [
            make(one.id, one.kind, str(one.headers[HEADER].get("queue") or one.queue), self._ledger)
            for one, _ in entries
        ]


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


def _row(envelope: Envelope, track: bool, policy: Unique | None) -> dict[str, Any]:
    try:
        waiting(envelope)  # as the dispatcher will enter it: what would not fit fails here
    except UndecodableMessage as error:
        raise InvalidJob(f"{envelope.kind}: {error.detail}") from error
    return {
        "id": envelope.id,
        "kind": envelope.kind,
        "queue": envelope.queue,
        "priority": envelope.priority,
        "key": envelope.headers[HEADER].get("key"),
        "track": track,
        "policy": None if policy is None else policy_to_json(policy),
        "headers": json.dumps(envelope.headers),
        "body": envelope.body,
        "created_at": datetime.now(UTC),
    }


def policy_to_json(policy: Unique) -> str:
    """How the outbox keeps it; `penstock.schemas.unique.Unique` from it again is the dispatcher's."""
    return json.dumps(
        {
            "policy": policy.policy,
            "states": sorted(policy.states),
            "hold": None if policy.hold is None else policy.hold.total_seconds(),
            "quiet": None if policy.quiet is None else policy.quiet.total_seconds(),
        }
    )


def _insert(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    insert = sa.insert(outbox)
    dialect = connection.dialect
    if dialect.insert_executemany_returning_sort_by_parameter_order and dialect.name != "sqlite":
        # One INSERT for all, which numbers them in this order.
        connection.execute(insert.returning(outbox.c.position, sort_by_parameter_order=True), rows)
    else:
        connection.execute(insert, rows)


def _is_async_session(target: object) -> bool:
    loaded = sys.modules.get("sqlalchemy.ext.asyncio")  # whoever has one has loaded it
    return loaded is not None and isinstance(target, loaded.AsyncSession | loaded.async_scoped_session)
