"""Reads messages as unmodified clients write them: Celery's on Redis, which kombu wraps, and Dramatiq's."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from penstock.config.errors import UndecodableMessage
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.celery_tasks import JSON, PROPERTIES
from penstock.schemas.wire.codec import Envelope, is_id, open_body
from penstock.schemas.wire.forms import FOLLOW_UPS_OF_DRAMATIQ

DRAMATIQ = "dramatiq"
"""Options and timestamp of a Dramatiq message, for a worker that has adopted its actor: a header while it is read,
and then a part of the embed, since brokers limit the size of headers."""

_CONTENT = ("content-type", "content-encoding")
_PROPERTIES = ("content_type", "content_encoding", "reply_to", "correlation_id", "priority", "delivery_info", "app_id")


def read_kombu(queue: str, raw: bytes) -> Envelope:
    """The envelope of a message of kombu's virtual transports. Other bytes have no headers, and are the body."""
    try:
        message = from_json(raw)
        properties, headers, body = message["properties"], message["headers"], message["body"]
        if not isinstance(headers, dict):
            raise TypeError("headers are not an object")
        encoded = properties.get("body_encoding") == "base64"
        content = base64.b64decode(body, validate=True) if encoded else str(body).encode()
        headers = with_properties(headers, properties | {name: message.get(name) for name in _CONTENT})
        return Envelope(queue, "low" if properties.get("priority") else "normal", headers, content)
    except (ValueError, LookupError, TypeError, AttributeError):
        return Envelope(queue, "normal", {}, raw)


def with_properties(headers: dict[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """The headers of a message of Celery's, and in one of them the properties that an adopted task needs.

    Arguments:
        properties: by AMQP's names, and `content-type` and `content-encoding` with a hyphen or an underscore.
    """
    if "task" not in headers:
        return headers
    values = {name.replace("-", "_"): value for name, value in properties.items() if value}
    kept = {name: values[name] for name in _PROPERTIES if name in values}
    if kept.get("content_type") == JSON:
        del kept["content_type"]
        kept.pop("content_encoding", None)
    return {**headers, PROPERTIES: kept} if kept else headers


def read_dramatiq(queue: str, raw: bytes, priority: Priority = "normal") -> Envelope:
    """Dramatiq's message in JSON as an envelope: actor_name is the kind, args and kwargs are the fields.

    `options.eta` becomes the header `eta`, and `options.max_age` the header `expires`. Retries and time limits of
    Dramatiq's actors are ignored: the kind declares them here.

    Raises:
        UndecodableMessage: (`undecodable`) and never anything else, whatever the bytes are.
    """
    try:
        message = from_json(raw, allow_inf_nan=False)
        name, job_id, args, kwargs = (message[key] for key in ("actor_name", "message_id", "args", "kwargs"))
        options = message.get("options") or {}
        if not isinstance(name, str) or not is_id(job_id) or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError("actor_name, message_id, args or kwargs are of the wrong type")
        request = {"options": options, "message_timestamp": message.get("message_timestamp")}
        headers = {"lang": "py", "task": name, "id": job_id, "root_id": job_id, DRAMATIQ: request}
        if (eta := options.get("eta")) is not None:
            headers["eta"] = _time(eta)
        if max_age := options.get("max_age"):
            headers["expires"] = _time(message["message_timestamp"] + max_age)
        embed: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        # In the body, where a worker sees and refuses them: dropped here, they would be lost in silence.
        embed |= {key: options[key] for key in FOLLOW_UPS_OF_DRAMATIQ if options.get(key)}
        return Envelope(queue, priority, headers, json.dumps([args, kwargs, embed]).encode())
    except Exception as error:  # a client's bytes can be wrong in more ways than can be listed
        raise UndecodableMessage("undecodable", f"not a Dramatiq message: {type(error).__name__}: {error}") from error


def pass_on_options(envelope: Envelope, *, needed: bool) -> None:
    """Move the options of a Dramatiq message from the header into the embed, or drop them."""
    if (request := envelope.headers.pop(DRAMATIQ, None)) is not None and needed:
        args, kwargs, embed = open_body(envelope.body)
        envelope.body = json.dumps([args, kwargs, {**(embed or {}), DRAMATIQ: request}]).encode()


def _time(milliseconds: float) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
