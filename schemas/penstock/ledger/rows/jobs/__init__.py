"""Rows of jobs that wait in the ledger: made of envelopes, and handed over to the broker.

A sender *reserves* a row first (its due time moves a little ahead), sends, and *marks* it. A crash in between leaves a
row that is due again when the reservation ends. A job that was already sent goes out twice under one id, attempt and
fence, which the claim absorbs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import UndecodableMessage
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.sql.types import Text
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, NAME, PRIORITIES, Kind, registry
from penstock.schemas.states import WAITING, State
from penstock.schemas.wire.codec import (
    Envelope,
    Message,
    body_of,
    check_size,
    from_stock,
    open_body,
    parse_time,
    read_body,
)
from penstock.schemas.wire.ids import made_at
from penstock.schemas.wire.tags import read_tags
from penstock.schemas.wire.traceparent import read_traceparent

Row = dict[str, Any]

UNSEEN = "null"
"""Payload of a job that was cancelled before a worker saw its message."""

IDENTITY = (jobs.c.kind, jobs.c.tenant, jobs.c.queue, (jobs.c.payload == UNSEEN).label("unseen"), jobs.c.embed)
"""The columns that `is_another`, `is_elsewhere` and `is_superseded` need."""

RESERVED = timedelta(seconds=15)
"""Length of a reservation. It is longer than a broker's timeout, so that a slow broker causes no race."""

RESENT = "penstock_resent"
"""Where the column `embed` keeps the `fence` under which an attempt ended by sending its job as another message, and
the `kinds` that the job had before."""

ARGS = "penstock_args"
"""Where the column `embed` keeps positional arguments of a kind whose fields are not known here."""

# Plain strings: SQLAlchemy's names are a subclass, whose every look-up costs, such as those of a serializer.
_DEFAULTS: Row = {str(column.name): None for column in jobs.columns} | {
    "attempt": 0,
    "failures": 0,
    "crashes": 0,
    "fence": 0,
    "cancel_requested": False,
}


def _row(**values: Any) -> Row:
    """A whole row: rows of one INSERT must name the same columns."""
    return _DEFAULTS | values


_TEXTS = {str(column.name): column.type.length for column in jobs.columns if isinstance(column.type, sa.String | Text)}
_LARGEST = 2**31 - 1


def waiting(envelope: Envelope) -> Row:
    """The waiting row of an envelope from anywhere, checked so that it cannot spoil the INSERT of a whole batch.

    Raises:
        UndecodableMessage: (`undecodable` or `too_large`) and never anything else.
    """
    check_size(envelope)
    try:
        row = waiting_row(envelope)
        _check(row)
    except UndecodableMessage:
        raise
    except Exception as error:  # headers of other software can be wrong in any way
        raise UndecodableMessage("undecodable", f"{type(error).__name__}: {error}") from error
    return row


def waiting_row(envelope: Envelope, due_at: datetime | None = None) -> Row:
    """The row of a job that the dispatcher is to send: at its `due_at`, else at once.

    Raises:
        UndecodableMessage: the body cannot be read. ValueError and the like: for headers of other software.
    """
    headers = envelope.headers
    ours = headers.get("penstock") or {}
    kind = registry.find(envelope.kind)
    if kind is None:
        args, payload, embed = open_body(envelope.body)
        if args:
            embed = {**(embed or {}), ARGS: args}
    elif (adopted := from_stock(kind, envelope)) is not None:
        payload, embed = adopted.model_dump(mode="json"), None
    else:
        payload, embed = read_body(envelope.body, list(kind.job.model_fields))
    now = datetime.now(UTC)
    queue = ours.get("queue") or envelope.queue
    if queue == DISPATCHER_QUEUE:
        queue = kind.queue if kind else ""
    return _row(
        id=envelope.id,
        kind=envelope.kind,
        queue=queue,
        priority=envelope.priority,
        delivery=kind.delivery if kind else "at_least_once",
        state=State.SCHEDULED,
        version=ours.get("version") or (kind.version if kind else 1),
        payload=json.dumps(payload),
        embed=json.dumps(embed) if embed and any(embed.values()) else None,
        key=ours.get("key"),
        tenant=ours.get("tenant"),
        traceparent=ours.get("traceparent") if ours else read_traceparent(headers.get("traceparent")),
        enqueued_at=parse_time(ours.get("sent_at")) or made_at(envelope.id) or now,
        expires_at=parse_time(ours.get("expires_at") or headers.get("expires")),
        due_at=due_at or parse_time(ours.get("due_at") or headers.get("eta")) or now,
        tags=json.dumps(read_tags(ours.get("tags")), ensure_ascii=False) if ours.get("tags") else None,
    )


def is_another(row: Any, name: str, kind: Kind | None, tenant: str | None, queue: str) -> bool:
    """Whether a message under the id of this row, which has `IDENTITY`, is of another kind or tenant than its job.

    A row that was written unseen, or erased, has no more than a guess of what its message says, and is not compared.

    Arguments:
        name, kind: of the message; the name may be an alias, and the kind unknown here.
    """
    if row.unseen:
        return False
    if row.tenant != tenant:
        return True
    if row.kind == name or (kind is not None and (row.kind == kind.name or row.kind in kind.aliases)):
        return False
    if name in _resent(row).get("kinds", ()):
        return False
    # A newer worker may have written a name that this process does not know yet, of the same kind.
    renamed = kind is not None and registry.find(row.kind) is None
    return not renamed or row.queue != queue


def is_elsewhere(row: Any, queue: str) -> bool:
    """Whether this row, which has `IDENTITY`, is of a job on another queue.

    Only for a message that would be accepted: a producer may repeat a job under its id while its kind moves to another
    queue, and such a copy is refused like any other.
    """
    return not row.unseen and bool(row.queue) and row.queue != queue


def is_superseded(row: Any, fence: int) -> bool:
    """Whether a message with this fence is from before the job of this row, which has `IDENTITY`, was sent as another
    one."""
    return fence < int(_resent(row).get("fence", 0))


def resent_embed(message: Message, fence: int) -> dict[str, Any]:
    """The embed of a job that an attempt of this message, claimed with the fence, sends as another one."""
    embed = message.embed or {}
    kinds = {*embed.get(RESENT, {}).get("kinds", ()), message.kind.name}
    return {**embed, RESENT: {"fence": fence, "kinds": sorted(kinds)}}


def _resent(row: Any) -> dict[str, Any]:
    if row.embed is None or RESENT not in row.embed:
        return {}
    mark: dict[str, Any] = json.loads(row.embed)[RESENT]
    return mark


ID_TAKEN = "id_taken"
"""Reason of a dead letter whose message has the id of another job."""


def id_taken(job_id: str) -> str:
    """The detail of such a dead letter. It does not describe the other job, whose tenant may be another."""
    return f"job {job_id} is on record with another kind, tenant or queue; that job is not changed"


def mark_sent(connection: sa.Connection, database: Database, ids: Sequence[str], until: datetime, began: float) -> None:
    """Record that the broker has these jobs.

    Arguments:
        until: end of their reservation.
        began: `time.monotonic()` before the sending.
    """
    # Before the sending, not after it: a broker wiped in between has lost what was sent before that.
    sent_at = from_now(timedelta(seconds=began - time.monotonic()))
    where = reserved(database, ids, until)
    connection.execute(sa.update(jobs).where(where).values(state=State.QUEUED, due_at=sent_at))


def reserved(database: Database, ids: Sequence[str], until: datetime) -> sa.ColumnElement[bool]:
    """Condition: the row is as it was reserved. Meanwhile a worker may have claimed it, and even failed and put it
    off again, or it was cancelled. Each of these changes the due time."""
    waiting = (jobs.c.due_at == until, jobs.c.state.in_(sorted(WAITING)))
    return sa.and_(database.among(jobs.c.id, ids), *waiting)


def release_reserved(connection: sa.Connection, database: Database, ids: Sequence[str], until: datetime) -> None:
    """Make reserved rows due now, for any dispatcher to send.

    Arguments:
        until: end of their reservation.
    """
    connection.execute(sa.update(jobs).where(reserved(database, ids, until)).values(due_at=from_now()))


def _check(row: Row) -> None:
    for name, longest in _TEXTS.items():
        value = row[name]
        if value is None:
            continue
        if not isinstance(value, str):
            raise UndecodableMessage("undecodable", f"{name} must be text, not {value!r}")
        value.encode()  # no database accepts a lone surrogate as text
        if "\0" in value or (longest is not None and len(value) > longest):
            raise UndecodableMessage("undecodable", f"{name} is longer than {longest} characters or holds a NUL")
    if not row["id"] or not row["kind"]:
        raise UndecodableMessage("undecodable", "not a Celery protocol 2 message: headers 'task' and 'id' are needed")
    if NAME.fullmatch(row["queue"]) is None:
        raise UndecodableMessage("undecodable", f"{row['queue']!r} is not a valid name of a queue")
    if row["priority"] not in PRIORITIES:
        raise UndecodableMessage("undecodable", f"priority {row['priority']!r} is not one of {', '.join(PRIORITIES)}")
    version = row["version"]
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= _LARGEST:
        raise UndecodableMessage("undecodable", f"version must be an integer from 1, not {version!r}")
    for name in ("due_at", "enqueued_at", "expires_at"):
        if row[name] is not None:
            row[name].astimezone(UTC)  # year 1 or 9999 with an offset overflows


def message_row(message: Message, started_at: datetime) -> Row:
    """Message → columns of a job's row that are not null from its first claim on, except state, worker, fence and
    attempt."""
    job = message.job
    embed = message.embed
    return {
        "id": message.id,
        "kind": message.kind.name,
        "queue": message.queue,
        "priority": message.priority,
        "delivery": message.kind.delivery,
        "version": message.kind.version,
        "payload": job.__pydantic_serializer__.to_json(job, by_alias=True).decode(),
        "embed": None if embed is None else json.dumps(embed),
        "key": message.key,
        "tenant": message.tenant,
        "traceparent": message.traceparent,
        "enqueued_at": message.sent_at or started_at,
        "expires_at": message.expires_at,
        "started_at": started_at,
        "failures": 0,
        "crashes": 0,
        "cancel_requested": False,
        "tags": json.dumps(message.tags, ensure_ascii=False) if message.tags else None,
    }


def body_of_row(row: Any) -> bytes:
    """The body of a waiting row's message. The payload goes as it was kept: its kind may be unknown here."""
    payload: bytes = row.payload.encode()
    if row.embed is None:
        return body_of(payload)
    if ARGS not in row.embed:
        return body_of(payload, row.embed.encode())
    embed = json.loads(row.embed)
    args = json.dumps(embed.pop(ARGS, []))
    return b"[" + args.encode() + b"," + payload + b"," + json.dumps(embed).encode() + b"]"
