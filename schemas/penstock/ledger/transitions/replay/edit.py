"""Dead letters with an edited payload: fields are set, and the whole is checked by the kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from penstock.config.errors import InvalidJob, InvalidState, UndecodableMessage
from penstock.ledger.rows.jobs import Row, body_of_row
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Kind, registry
from penstock.schemas.wire.codec import EMBED, HEADER, Envelope, body_of, explain, read_body, unique_key

CONTENT = ("kind", "queue", "priority", "delivery", "version", "payload", "embed", "key", "tenant", "traceparent")
"""The columns of a job's row that its message makes."""


def edited_envelope(envelope: Envelope, dead_letter_id: str, edit: Mapping[str, Any]) -> Envelope:
    """The message of an unread dead letter with these fields set, in the kind's current version.

    Raises:
        InvalidJob: the edit does not fit. UndecodableMessage: the rest of the message still cannot be read.
    """
    kind = registry[envelope.kind]
    headers = dict(envelope.headers)
    ours = headers.get(HEADER)
    version = ours.get("version") if isinstance(ours, dict) else None
    payload, embed = read_body(envelope.body, list(kind.job.model_fields))
    job = _fitted(kind, dead_letter_id, _lifted(kind, payload, version), edit)
    if isinstance(ours, dict):
        headers[HEADER] = {**ours, "version": kind.version}
    body = body_of(_json(job).encode(), EMBED if embed is None else json.dumps(embed).encode())
    return Envelope(envelope.queue, envelope.priority, headers, body)


def edited_row(row: Any, edit: Mapping[str, Any]) -> Row:
    """The `CONTENT` of a job's row with these fields of its payload set.

    Raises:
        InvalidJob: the edit does not fit, or the kind is not known here. InvalidState: the payload cannot be read.
    """
    kind = registry.find(row.kind)
    if kind is None:
        raise InvalidJob(
            f"dead letter {row.id} cannot be edited: no imported module defines kind {row.kind!r}; "
            "import the one that does with --import"
        )
    try:
        payload, embed = read_body(body_of_row(row), list(kind.job.model_fields))
        payload = _lifted(kind, payload, row.version)
    except UndecodableMessage as error:
        scrub = kind.scrub_of_payload(lambda: json.loads(row.payload))
        raise InvalidState(f"dead letter {row.id} cannot be edited: {scrub(error.detail)}") from error
    job = _fitted(kind, row.id, payload, edit)
    fresh: Row = {name: getattr(row, name) for name in CONTENT}
    return fresh | {
        "kind": kind.name,
        "delivery": kind.delivery,
        "version": kind.version,
        "payload": _json(job),
        "embed": embed_column(embed),
        "key": unique_key(job) if _has_made_key(kind, payload, row.key) else row.key,
    }


def _fitted(kind: Kind, dead_letter_id: str, payload: dict[str, Any], edit: Mapping[str, Any]) -> Job:
    """The job with these fields set. None for a name that is not a field removes it from the payload.

    Raises:
        InvalidJob: names the field.
    """
    fields = kind.job.model_fields
    wire_names = {name: info.alias or name for name, info in fields.items()}
    edited = dict(payload)
    for name, value in edit.items():
        on_wire = wire_names.get(name, name)
        if on_wire in wire_names.values() or kind.job.model_config.get("extra") == "allow":
            edited[on_wire] = value
        elif value is None and name in payload:
            del edited[name]
        else:
            raise InvalidJob(
                f"dead letter {dead_letter_id}: the edit does not fit {kind.name}, which has no field {name!r}; "
                f"it has {', '.join(wire_names) or 'none'}"
            )
    try:
        job: Job = kind.job.model_validate_json(json.dumps(edited))
        return job
    except ValidationError as error:
        raise InvalidJob(
            f"dead letter {dead_letter_id}: the edit does not fit {kind.name}: {explain(error, kind=kind)}"
        ) from error


def _lifted(kind: Kind, payload: dict[str, Any], version: object) -> dict[str, Any]:
    return registry.upcast(kind, payload, version if isinstance(version, int) else kind.version)


def _has_made_key(kind: Kind, payload: dict[str, Any], key: str | None) -> bool:
    """Whether a job's key was made of its fields by `unique_by`, and so changes with them."""
    if key is None or not kind.unique_by:
        return False
    try:
        return unique_key(kind.job.model_validate_json(json.dumps(payload))) == key
    except ValidationError:
        return False


def _json(job: Job) -> str:
    return job.__pydantic_serializer__.to_json(job, by_alias=True).decode()


def embed_column(embed: dict[str, Any] | None) -> str | None:
    """Embed (callbacks, chain, …) → column of a job's row; None if it is empty."""
    return json.dumps(embed) if embed and any(embed.values()) else None
