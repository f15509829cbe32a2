"""What an outbox writes for a job: the columns of its row, the same whoever's connection writes them. Needs no SQL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypedDict

from penstock.config.errors import InvalidJob, UndecodableMessage
from penstock.producers.enqueue.options import OF_POLICIES, Duration, Preparation
from penstock.producers.handles.connections import LedgerLink
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.jobs.unique_policy import Unique, UniquePolicy
from penstock.schemas.wire.codec import HEADER, Envelope, decode

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.schemas.jobs.job import Job

Entry = tuple[Envelope, dict[str, Any]]
"""A job's envelope, and its row: every column of `penstock_outbox` but those that the database and dispatchers fill."""


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


_shared = LedgerLink()
"""Of all outboxes that were made without settings: one may be made for each call."""


class BaseOutbox:
    """What the outboxes of SQLAlchemy and Django have in common: all but the writing."""

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

    def close(self) -> None:
        """Close what handles have opened."""
        self._ledger.close()


def make_entry(preparation: Preparation, job: Job, options: Mapping[str, Any]) -> Entry:
    """One job with the options of `Producer.enqueue`.

    Raises:
        InvalidJob: the job or an option is wrong; TypeError: there is no such option.
    """
    about = {name: value for name, value in options.items() if name in OF_POLICIES}
    rest = {name: value for name, value in options.items() if name not in OF_POLICIES}
    policy = preparation.policy(job, key=options.get("key"), **about)
    envelope = preparation.envelope(job, policy=policy, **rest)
    return envelope, _row(envelope, job.kind().track, policy)


def make_entries(preparation: Preparation, jobs: Iterable[Job]) -> list[Entry]:
    """Many, in order; the error says which one is wrong, counted from 0."""
    jobs = list(jobs)
    entries = []
    for number, (job, envelope) in enumerate(zip(jobs, preparation.envelopes(jobs), strict=True)):
        kind = job.kind()
        try:
            entries.append((envelope, _row(envelope, kind.track, kind.unique)))
        except InvalidJob as error:
            error.add_note(f"it is number {number} of the batch; nothing was written")
            raise
    return entries


def target_queue(envelope: Envelope) -> str:
    """The queue where it will run; its own is the dispatcher's while its time has not come."""
    return str(envelope.headers[HEADER].get("queue") or envelope.queue)


def _row(envelope: Envelope, track: bool, policy: Unique | None) -> dict[str, Any]:
    try:
        decode(envelope)  # as the dispatcher will: what would not fit fails here
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
    """How the outbox keeps it; `penstock.schemas.jobs.unique_policy.Unique` from it again is the dispatcher's."""
    return json.dumps(
        {
            "policy": policy.policy,
            "states": sorted(policy.states),
            "hold": None if policy.hold is None else policy.hold.total_seconds(),
            "quiet": None if policy.quiet is None else policy.quiet.total_seconds(),
        }
    )
