"""A batch of rows that were taken from an outbox, decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from penstock.config.errors import UndecodableMessage
from penstock.ledger.rows.jobs import RESERVED, Row, waiting
from penstock.ledger.transitions.cancel import Seen
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.jobs.unique_policy import Unique
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Envelope


@dataclass(slots=True)
class OutboxEntry:
    """A row, decoded.

    Attributes:
        policy: of the job's unique key; None: the job needs no key.
        row: the job's row in the ledger; None: it goes to the broker alone.
    """

    position: int
    envelope: Envelope
    policy: Unique | None
    row: Row | None


@dataclass(slots=True)
class OutboxBatch:
    """Rows that one dispatcher has taken.

    Attributes:
        token: identifies who took them.
        now: on the clock of the ledger's database.
        more: whether there may be more rows.
        undecodable: rows that cannot be decoded, with the reason.
        plain, unique: ids of the jobs that are reserved in the ledger and must be sent.
    """

    token: str
    now: datetime
    rows: Sequence[Any] = ()
    more: bool = False
    entries: list[OutboxEntry] = field(default_factory=list)
    undecodable: list[tuple[Envelope, UndecodableMessage]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    unique: list[str] = field(default_factory=list)

    @property
    def until(self) -> datetime:
        """The end of the jobs' reservation in the ledger. It outlasts that of the rows: if this dispatcher dies, a
        relay must go on, not the service of due jobs, because only a relay keeps the order of the rows."""
        return self.now + 2 * RESERVED

    def decode_rows(self) -> None:
        for row in self.rows:
            try:
                self.entries.append(_entry(row, self.until))
            except UndecodableMessage as error:
                self.undecodable.append((raw_envelope(row), error))

    def keyed_jobs(self) -> list[Seen]:
        """Jobs with a key, by which they may have been cancelled."""
        rows = [entry.row for entry in self.entries if entry.row is not None and entry.row["key"] is not None]
        return [(row["id"], row["kind"], row["key"], row["tenant"], row["enqueued_at"]) for row in rows]

    def to_send(self, cancelled: set[str]) -> list[OutboxEntry]:
        """Entries for the broker, in order, each id once."""
        ready = {*self.plain, *self.unique} - cancelled
        entries: dict[str, OutboxEntry] = {}
        for entry in self.entries:
            if entry.row is None or entry.envelope.id in ready:
                entries.setdefault(entry.envelope.id, entry)
        return list(entries.values())


def raw_envelope(row: Any) -> Envelope:
    """The envelope of a row that cannot be decoded or kept, for its dead letter."""
    return Envelope(row.queue, "normal", {"id": row.id, "task": row.kind}, bytes(row.body))


def _entry(row: Any, until: datetime) -> OutboxEntry:
    """Row → entry. Raises UndecodableMessage, and nothing else."""
    try:
        headers = json.loads(row.headers)
        if not isinstance(headers, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise UndecodableMessage("undecodable", f"the headers {row.headers[:1000]!r}: {error}") from error
    envelope = Envelope(row.queue, row.priority, headers, bytes(row.body))
    job = waiting(envelope)
    if row.queue != DISPATCHER_QUEUE:
        if not row.track:
            return OutboxEntry(row.position, envelope, None, None)
        job["due_at"] = until
    return OutboxEntry(row.position, envelope, _policy(row.policy), job)


def _policy(text: str | None) -> Unique | None:
    if text is None:
        return None
    try:
        fields = json.loads(text)
        hold, quiet = (None if fields[name] is None else timedelta(seconds=fields[name]) for name in ("hold", "quiet"))
        return Unique(fields["policy"], frozenset(map(State, fields["states"])), hold, quiet)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise UndecodableMessage("undecodable", f"the policy {text[:1000]!r}: {error}") from error
