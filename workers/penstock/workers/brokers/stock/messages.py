"""Reads messages as unmodified clients write them: Celery's on Redis, which kombu wraps, and Dramatiq's."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from penstock.config.errors import UndecodableMessage
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import Envelope, is_id

_FOLLOW_UPS = ("pipe_target", "on_success", "on_failure", "on_retry_exhausted", "group_completion_callbacks")
"""Dramatiq's options that ask for something after the job. They travel in the body, where a worker sees and refuses
them: dropped here, they would be lost in silence."""


def read_kombu(queue: str, raw: bytes) -> Envelope:
    """The envelope of a message of kombu's virtual transports. Other bytes have no headers, and are the body."""
    try:
        message = from_json(raw)
        properties, headers, body = message["properties"], message["headers"], message["body"]
        if not isinstance(headers, dict):
            raise TypeError("headers are not an object")
        encoded = properties.get("body_encoding") == "base64"
        content = base64.b64decode(body, validate=True) if encoded else str(body).encode()
        return Envelope(queue, "low" if properties.get("priority") else "normal", headers, content)
    except (ValueError, LookupError, TypeError, AttributeError):
        return Envelope(queue, "normal", {}, raw)


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
        headers = {"lang": "py", "task": name, "id": job_id, "root_id": job_id}
        if (eta := options.get("eta")) is not None:
            headers["eta"] = _time(eta)
        if max_age := options.get("max_age"):
            headers["expires"] = _time(message["message_timestamp"] + max_age)
        embed: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        embed |= {key: options[key] for key in _FOLLOW_UPS if options.get(key)}
        return Envelope(queue, priority, headers, json.dumps([args, kwargs, embed]).encode())
    except Exception as error:  # a client's bytes can be wrong in more ways than can be listed
        raise UndecodableMessage("undecodable", f"not a Dramatiq message: {type(error).__name__}: {error}") from error


def _time(milliseconds: float) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
