"""Job → row of an outbox, the same on whatever connection it is written. Needs no SQLAlchemy: Django has none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from penstock.config.errors import InvalidJob, UndecodableMessage
from penstock.producers.enqueue.envelopes import EnvelopeBuilder
from penstock.producers.enqueue.options import EnqueueOptions
from penstock.producers.handles.connections import LedgerConnections
from penstock.producers.traces.sending import sending
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.overrides import override_kinds
from penstock.schemas.jobs.unique_policy import Unique
from penstock.schemas.wire.codec import HEADER, Envelope, decode

if TYPE_CHECKING:
    from penstock.config.settings import Settings

Entry = tuple[Envelope, dict[str, Any]]
"""A job's envelope, and its row: every column of `penstock_outbox` but those that the database and dispatchers fill."""


_shared = LedgerConnections()
"""Connections of all outboxes that were made without settings: one may be made for each call."""


class BaseOutbox:
    """Outbox of SQLAlchemy and of Django, but for the writing."""

    def __init__(
        self,
        *,
        database_url: str | None = None,
        max_payload_bytes: int = 256 * 1024,
        queues: Iterable[str] = (),
        **connections: Any,
    ) -> None:
        self._builder = EnvelopeBuilder(max_payload_bytes, frozenset(queues))
        self._ledger = (
            _shared if database_url is None and not connections else LedgerConnections(database_url, **connections)
        )

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """An outbox as `penstock.toml` and the environment say; reads them now if no settings are given.

        Raises:
            ConfigError: a setting is wrong.
        """
        if settings is None:
            from penstock.config.settings import load_settings

            settings = load_settings()
        override_kinds(settings.kinds)
        return cls(
            database_url=settings.database_url,
            max_payload_bytes=settings.max_payload_bytes,
            queues=settings.queues,
            storage_url=settings.storage_url,
            broker_url=settings.broker_url,
            prefix=settings.prefix,
            timeout_seconds=settings.broker_timeout_seconds,
        )

    def close(self) -> None:
        """Close the connections that handles have opened."""
        self._ledger.close()


def make_entry(builder: EnvelopeBuilder, job: Job, options: EnqueueOptions) -> Entry:
    """Job with the options of `Producer.enqueue` → entry.

    Raises:
        InvalidJob: the job or an option is wrong; TypeError: an option does not exist.
    """
    envelope, policy = builder.build(job, options)
    with sending((envelope,), "create"):
        return envelope, _row(envelope, job.kind().track, policy)


def make_entries(builder: EnvelopeBuilder, jobs: Iterable[Job]) -> list[Entry]:
    """Jobs → entries, in order.

    Raises:
        InvalidJob: a job is wrong; a note says which, counted from 0.
    """
    jobs = jobs if isinstance(jobs, Job) else list(jobs)  # `build_many` refuses a single one
    entries = []
    prepared = builder.build_many(jobs)
    with sending([envelope for envelope, _ in prepared], "create"):
        for number, (job, (envelope, policy)) in enumerate(zip(jobs, prepared, strict=True)):
            try:
                entries.append((envelope, _row(envelope, job.kind().track, policy)))
            except InvalidJob as error:
                error.add_note(f"it is number {number} of the batch; nothing was written")
                raise
    return entries


def sealed_entry(envelope: Envelope) -> Entry:
    """Envelope that is sealed already, of a kind that this process need not know → entry."""
    with sending((envelope,), "create"):
        return envelope, _columns(envelope, True, None)


def _row(envelope: Envelope, track: bool, policy: Unique | None) -> dict[str, Any]:
    try:
        decode(envelope)  # as the dispatcher will: what would not fit fails here
    except UndecodableMessage as error:
        raise InvalidJob(f"{envelope.kind}: {error.detail}") from error
    return _columns(envelope, track, policy)


def _columns(envelope: Envelope, track: bool, policy: Unique | None) -> dict[str, Any]:
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
    """Policy → JSON of the outbox's column; the dispatcher reads it back."""
    return json.dumps(
        {
            "policy": policy.policy,
            "states": sorted(policy.states),
            "hold": None if policy.hold is None else policy.hold.total_seconds(),
            "quiet": None if policy.quiet is None else policy.quiet.total_seconds(),
        }
    )
