"""Messages of Celery's tasks as the fields of adopted jobs.

A job keeps the arguments as JSON, so that people can read and search them. What JSON does not hold, such as a pickle,
travels as it came, and only the worker that runs the task reads it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from penstock.config.errors import UndecodableMessage
from penstock.schemas.wire.codec import HEADER
from penstock.schemas.wire.forms import EMBED_OF_CELERY

JSON = "application/json"
PROPERTIES = "properties"
"""The header under which an intake keeps properties of a message that Celery's worker reads."""
_NOT_KEPT = frozenset({"task", "id", HEADER, PROPERTIES})
_PROPERTIES = frozenset({"app_id", "correlation_id", "reply_to", "priority", "message_id", "user_id", "type"})


def task_fields(headers: Mapping[str, Any], properties: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """The fields `args`, `kwargs` and `request` of an adopted job.

    `request` has the headers, and what Celery's worker adds of the properties and of the body. Under `penstock` it has
    `typed`, if the arguments hold types of kombu's JSON, or `body`, `content_type` and `content_encoding`, if they are
    not JSON.

    Arguments:
        properties: of the message; `content_type` and `content_encoding` are JSON and UTF-8 if they are missing.

    Raises:
        UndecodableMessage: (`undecodable`) the body is not Celery's protocol 2.
    """
    request = {name: value for name, value in headers.items() if value is not None and name not in _NOT_KEPT}
    for name in ("reply_to", "correlation_id"):
        if properties.get(name):
            request[name] = properties[name]
    request["properties"] = {name: value for name, value in properties.items() if name in _PROPERTIES and value}
    info = properties.get("delivery_info") or {}
    request["delivery_info"] = {
        "exchange": info.get("exchange") or "",
        "routing_key": info.get("routing_key"),
        "priority": properties.get("priority") or 0,  # kombu's default
        "redelivered": False,
    }
    content_type = properties.get("content_type") or JSON
    if content_type != JSON or b"NaN" in body or b"Infinity" in body:
        request[HEADER] = {
            "body": base64.b64encode(body).decode(),
            "content_type": content_type,
            "content_encoding": properties.get("content_encoding") or "utf-8",
        }
        return {"args": [], "kwargs": {}, "request": request}
    try:
        args, kwargs, embed = from_json(body)
    except ValueError as error:
        raise UndecodableMessage("undecodable", f"the body is not JSON [args, kwargs, embed]: {error}") from error
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise UndecodableMessage("undecodable", "the body is not JSON [args, kwargs, embed]")
    request |= {name: embed[name] for name in EMBED_OF_CELERY if embed and embed.get(name)}
    if b'"__type__"' in body:
        request[HEADER] = {"typed": True}
    return {"args": args, "kwargs": kwargs, "request": request}
