"""The wire: Celery's message protocol, version 2, in JSON. See `docs/wire.md`.

An `Envelope` is what brokers carry: headers and a body. `encode` makes one of a job, `decode` reads one, from our own
producers or from an unmodified Celery client. Times on the wire are ISO 8601 in UTC.
https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

# Over 400 lines: encoder and decoder of one format, which change together.

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from penstock.config.errors import PayloadTooLarge, UndecodableMessage
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, PRIORITIES, Kind, Priority, Registry
from penstock.schemas.jobs.kind import registry as default_registry
from penstock.schemas.wire.forms import in_form_of, may_be_of_other_form
from penstock.schemas.wire.ids import made_at, new_id
from penstock.schemas.wire.payloads import EMBED as EMBED
from penstock.schemas.wire.payloads import body_of as body_of
from penstock.schemas.wire.payloads import explain as explain
from penstock.schemas.wire.payloads import payload_of, scrubber_of_unread
from penstock.schemas.wire.tags import read_tags
from penstock.schemas.wire.texts import LONGEST, is_storable
from penstock.schemas.wire.texts import check_text as check_text
from penstock.schemas.wire.texts import is_id as is_id
from penstock.schemas.wire.traceparent import read_traceparent

HEADER = "penstock"
"""The one header of ours among Celery's."""

KEPT_BYTES = 64 * 1024
"""Bytes that are kept of each part of a message that is too large to be read."""
MESSAGE_BYTES = 4 * 1024 * 1024
"""The default limit of a message."""

_LARGEST = 2**31 - 1
_NEWER = frozenset({"extra_forbidden", "missing", "enum", "literal_error", "union_tag_invalid"})
"""Errors of pydantic: an unknown field, a missing one, an unknown member of an enumeration or a union."""


@dataclass(slots=True)
class Envelope:
    """Message as a broker carries it.

    Attributes:
        queue: the queue it goes to, or came from; `dispatcher` while its time has not come.
        priority: its lane in that queue.
        headers: JSON-compatible; Celery's, and ours under `penstock`.
        body: JSON, `[args, kwargs, embed]` in UTF-8.
        full_size: of a message over the limit, of which the broker's client has kept only the beginning: its bytes.
    """

    queue: str
    priority: Priority
    headers: dict[str, Any]
    body: bytes
    full_size: int | None = None

    @property
    def id(self) -> str:
        return str(self.headers.get("id", ""))

    @property
    def kind(self) -> str:
        return str(self.headers.get("task", ""))


@dataclass(slots=True)
class Message:
    """A decoded, validated envelope: what the executor works on.

    Attributes:
        id: the job's id.
        kind: as found in the registry; an alias is resolved.
        job: the message itself.
        queue: where it runs.
        attempt: the number of the attempt that this delivery asks for, from 1.
        fence: the ledger's when it was sent; 0 from a producer. A delivery with one behind the ledger's is a duplicate.
        due_at, ready_at: when it may run, None: at once; and when it was due in the ledger, None: it was not there.
        embed: callbacks, chain and so on of an unmodified Celery client; None if there are none.
    """

    id: str
    kind: Kind
    job: Job
    queue: str
    priority: Priority = "normal"
    attempt: int = 1
    fence: int = 0
    key: str | None = None
    tenant: str | None = None
    sent_at: datetime | None = None
    due_at: datetime | None = None
    ready_at: datetime | None = None
    expires_at: datetime | None = None
    traceparent: str | None = None
    embed: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()

    @property
    def timeout(self) -> timedelta | None:
        """The longest an attempt may run: the limit of this message, else of its kind; None: there is none."""
        own = self.job.time_limits()[0] if isinstance(self.job, AdoptedJob) else None
        return self.kind.timeout if own is None else own

    @property
    def soft_timeout(self) -> timedelta | None:
        """When the handler of an attempt is to end: the limit of this message, else of its kind; None: never."""
        own = self.job.time_limits()[1] if isinstance(self.job, AdoptedJob) else None
        return self.kind.soft_timeout if own is None else own


def encode(
    job: Job,
    *,
    id: str | None = None,
    queue: str | None = None,
    priority: Priority | None = None,
    attempt: int = 1,
    fence: int = 0,
    key: str | None = None,
    tenant: str | None = None,
    sent_at: datetime | None = None,
    due_at: datetime | None = None,
    expires_at: datetime | None = None,
    traceparent: str | None = None,
    max_bytes: int | None = None,
    embed: bytes = EMBED,
    tags: Sequence[str] = (),
) -> Envelope:
    """Make the envelope of a job. What is None takes the kind's default or is left out.

    A job with `due_at` goes to the dispatcher's queue, its own queue named in the header.

    Raises:
        InvalidJob: no worker could read it (also PayloadTooLarge: the body is over `max_bytes`); KindError: the class
            has no kind.
    """
    kind = job.kind()
    body = body_of(payload_of(job, kind), embed)
    if max_bytes is not None and len(body) > max_bytes:
        raise PayloadTooLarge(kind.name, len(body), max_bytes)
    if key is None and (kind.unique_by or kind.unique is not None):
        key = unique_key(job)
    return seal(
        kind.name,
        kind.version,
        body,
        id or new_id(),
        queue or kind.queue,
        priority or kind.priority,
        attempt,
        fence,
        key,
        tenant,
        sent_at,
        due_at,
        expires_at,
        traceparent,
        tags,
    )


def seal(
    kind: str,
    version: int,
    body: bytes,
    id: str,
    queue: str,
    priority: Priority,
    attempt: int = 1,
    fence: int = 0,
    key: str | None = None,
    tenant: str | None = None,
    sent_at: datetime | None = None,
    due_at: datetime | None = None,
    expires_at: datetime | None = None,
    traceparent: str | None = None,
    tags: Sequence[str] = (),
) -> Envelope:
    """Put the headers on a body that is made already; the kind may be one that this process does not know."""
    ours: dict[str, Any] = {
        "version": version,
        "attempt": attempt,
        "priority": priority,
        "sent_at": (sent_at or datetime.now(UTC)).isoformat(),
    }
    headers: dict[str, Any] = {"lang": "py", "task": kind, "id": id, "root_id": id, HEADER: ours}
    if fence:
        ours["fence"] = fence
    if key is not None:
        ours["key"] = key
    if tenant is not None:
        ours["tenant"] = tenant
    if traceparent is not None:
        ours["traceparent"] = traceparent
    if tags:
        ours["tags"] = list(tags)
    if expires_at is not None:
        ours["expires_at"] = headers["expires"] = expires_at.isoformat()
    if attempt > 1:
        headers["retries"] = attempt - 1
    if due_at is not None:
        ours["due_at"] = due_at.isoformat()
        ours["queue"] = queue
        queue = DISPATCHER_QUEUE
    return Envelope(queue, priority, headers, body)


def decode(envelope: Envelope, registry: Registry = default_registry) -> Message:
    """Read an envelope.

    Raises:
        UndecodableMessage: and never anything else, whatever the bytes are. Its `reason` is `undecodable`, `too_large`,
            `unknown_kind`, `invalid_payload` or `unknown_version`.
    """
    try:
        return _decode(envelope, registry)
    except Exception as error:
        if isinstance(error, UndecodableMessage):
            failure = error
        else:  # headers of other software can be wrong in any way
            failure = UndecodableMessage("undecodable", f"{type(error).__name__}: {error}")
        if scrub := scrubber_of_unread(envelope.headers.get("task"), envelope.body, registry):
            # Without its cause, whose text has the values, too.
            raise UndecodableMessage(failure.reason, scrub(failure.detail), newer=failure.newer) from None
        if failure is error:
            raise
        raise failure from error


def _decode(envelope: Envelope, registry: Registry) -> Message:
    check_size(envelope)
    headers = envelope.headers
    name, job_id = headers.get("task"), headers.get("id")
    if not isinstance(name, str) or not is_id(job_id):
        raise UndecodableMessage("undecodable", "not a Celery protocol 2 message: headers 'task' and 'id' are needed")
    kind = registry[name]
    ours = headers.get(HEADER)
    if ours is None:
        ours = {}
    elif not isinstance(ours, dict):
        raise UndecodableMessage("undecodable", f"header {HEADER!r} is not an object")
    version = _integer(ours, "version", kind.version)
    if (adopted := from_stock(kind, envelope)) is None:
        job, embed = _body(kind, envelope.body, version, registry)
    else:
        job, embed = adopted, None
    priority = ours.get("priority") or envelope.priority
    return Message(
        id=job_id,
        kind=kind,
        job=job,
        queue=_text(ours, "queue") or (envelope.queue if envelope.queue != DISPATCHER_QUEUE else kind.queue),
        priority=priority if priority in PRIORITIES else "normal",
        attempt=_integer(ours, "attempt", 1),
        fence=_integer(ours, "fence", 0, least=0),
        key=_text(ours, "key") if ours else (unique_key(job) if kind.unique_by else None),
        tenant=_text(ours, "tenant"),
        sent_at=parse_time(ours.get("sent_at")) or made_at(job_id),
        due_at=parse_time(ours.get("due_at") or headers.get("eta")),
        ready_at=parse_time(ours.get("ready_at")),
        expires_at=parse_time(ours.get("expires_at") or headers.get("expires")),
        traceparent=_text(ours, "traceparent") if ours else read_traceparent(headers.get("traceparent")),
        embed=embed if embed and any(embed.values()) else None,
        tags=read_tags(ours.get("tags")),
    )


def from_stock(kind: Kind, envelope: Envelope) -> AdoptedJob | None:
    """The job of a message that an adopted task's own client wrote; None: it is another message.

    Raises:
        UndecodableMessage, or any other error: see `AdoptedJob.from_stock`.
    """
    if HEADER in envelope.headers or not issubclass(kind.job, AdoptedJob):
        return None
    return kind.job.from_stock(envelope.headers, envelope.body)


def check_size(envelope: Envelope) -> None:
    """Raises UndecodableMessage (`too_large`) for a message of which only the beginning is here."""
    if envelope.full_size is not None:
        detail = f"the message has {envelope.full_size:,} bytes, more than max_message_bytes allows; only the beginning"
        raise UndecodableMessage("too_large", f"{detail} of each of its parts is kept, up to {KEPT_BYTES:,} bytes")


def _body(kind: Kind, body: bytes, version: int, registry: Registry) -> tuple[Job, dict[str, Any] | None]:
    if version == kind.version:
        try:
            args, job, embed = kind.body.validate_json(body)
        except ValidationError as error:
            if not _has_positional(body) and not may_be_of_other_form(kind.job, body):
                newer = _is_newer(error, skip=1)
                raise UndecodableMessage("invalid_payload", explain(error, skip=1, kind=kind), newer=newer) from error
        else:
            if not args:
                return job, embed
    # The slow path: positional arguments of a Celery client, an older version, or the other form of a task's message.
    args, payload, embed = in_form_of(kind.job, open_body(body))
    payload = _with_positional(args, payload, list(kind.job.model_fields))
    payload = registry.upcast(kind, payload, version)
    try:
        return kind.job.model_validate_json(json.dumps(payload)), embed
    except ValidationError as error:
        newer = version == kind.version and _is_newer(error)
        raise UndecodableMessage("invalid_payload", explain(error, kind=kind), newer=newer) from error


def _is_newer(error: ValidationError, skip: int = 0) -> bool:
    """Whether a payload of this version is refused for what newer code may have added or removed."""
    items = error.errors(include_url=False, include_input=False, include_context=False)
    return any(item["type"] in _NEWER and len(item["loc"]) > skip for item in items)


def read_body(body: bytes, fields: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The payload, with positional arguments of a stock client under the kind's fields, and the embed.

    Raises:
        UndecodableMessage: `undecodable`, or `invalid_payload` for more positional arguments than fields.
    """
    args, payload, embed = open_body(body)
    return _with_positional(args, payload, fields), embed


def _with_positional(args: list[Any], payload: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    if len(args) > len(fields):
        raise UndecodableMessage("invalid_payload", f"{len(args)} positional arguments for {len(fields)} fields")
    return {**dict(zip(fields, args, strict=False)), **payload}


def open_body(body: bytes) -> tuple[list[Any], dict[str, Any], dict[str, Any] | None]:
    """The three parts of a body: positional arguments, keyword arguments, embed (callbacks, chain, …).

    Raises:
        UndecodableMessage: `undecodable`.
    """
    try:
        args, payload, embed = json.loads(body)
    except ValueError as error:
        raise UndecodableMessage("undecodable", f"the body is not JSON [args, kwargs, embed]: {error}") from error
    if not isinstance(args, list) or not isinstance(payload, dict):
        raise UndecodableMessage("undecodable", "the body is not JSON [args, kwargs, embed]")
    return args, payload, embed if isinstance(embed, dict) else None


def unique_key(job: Job) -> str:
    """The key that `unique_by` makes: `kind:field=value,…`, or a hash of that where it cannot be a key itself, or a
    field is sensitive: keys are shown, and are part of rows and names of keys in Redis."""
    kind = job.kind()
    values = job.model_dump(mode="json", include=set(kind.unique_by))
    key = f"{kind.name}:" + ",".join(f"{name}={values[name]}" for name in kind.unique_by)
    if len(key) > LONGEST["key"] or not is_storable(key) or not kind.sensitive.isdisjoint(kind.unique_by):
        key = f"{kind.name}:sha256={hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"
    return key


def payload(body: bytes) -> dict[str, Any]:
    """The keyword arguments in a body, for showing; empty where it cannot be read."""
    try:
        kwargs = json.loads(body)[1]
    except (ValueError, LookupError, TypeError):
        return {}
    return kwargs if isinstance(kwargs, dict) else {}


def _has_positional(body: bytes) -> bool:
    return not body.lstrip().startswith((b"[[],", b"[[ ]"))


def _integer(header: dict[str, Any], name: str, default: int, least: int = 1) -> int:
    value = header.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST:
        raise UndecodableMessage("undecodable", f"{HEADER}.{name} must be an integer from {least}, not {value!r}")
    return value


def _text(header: dict[str, Any], name: str) -> str | None:
    value = header.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UndecodableMessage("undecodable", f"{HEADER}.{name} must be text, not {value!r}")
    try:
        check_text(name, value)
    except ValueError as error:
        raise UndecodableMessage("undecodable", f"{HEADER}.{error}") from error
    return value


def parse_time(value: object) -> datetime | None:
    """An ISO 8601 time; one without an offset, as Celery may send it, is UTC.

    Raises:
        ValueError, OverflowError: the value is not such a time.
    """
    if value is None:
        return None
    time = datetime.fromisoformat(str(value))
    if time.tzinfo is UTC:
        return time  # ours are
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def is_due(due_at: datetime | None, now: datetime, tolerance: timedelta = timedelta(milliseconds=5)) -> bool:
    return due_at is None or due_at <= now + tolerance
