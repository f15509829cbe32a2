"""The kinds as an AsyncAPI 3.0 document: a channel for each queue, a message for each kind.

It describes what workers receive, so a client in another language can be written, or generated, against it. Schemas
are JSON Schema draft 7, the default of AsyncAPI.
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic.json_schema import models_json_schema

from penstock.schemas.contracts.export import PermissiveJsonSchema
from penstock.schemas.jobs.kind import Kind, Priority
from penstock.schemas.wire.codec import HEADER
from penstock.schemas.wire.tags import LONGEST_TAG, MOST_TAGS

VERSION = "3.0.0"
_REFS = "#/components/schemas/{model}"


def document(kinds: Iterable[Kind], *, title: str, version: str, broker_url: str, prefix: str) -> dict[str, Any]:
    """AsyncAPI document of these kinds, as JSON values.

    Arguments:
        title, version: of the application, for the document's `info`.
        broker_url: its scheme, host and path are included, never its user or password.
        prefix: the setting of that name.
    """
    kinds = list(kinds)
    keys = dict(zip((kind.name for kind in kinds), _keys(kind.name for kind in kinds), strict=True))
    queues = dict.fromkeys(kind.queue for kind in kinds)
    channels = dict(zip(queues, _keys(queues), strict=True))
    broker: Literal["redis", "amqp"] = "amqp" if broker_url.startswith("amqp") else "redis"
    models, shared = models_json_schema(
        [(kind.job, "validation") for kind in kinds],
        by_alias=True,
        ref_template=_REFS,
        schema_generator=PermissiveJsonSchema,
    )
    fields = {kind.name: _draft_7(models[kind.job, "validation"]) for kind in kinds}
    return {
        "asyncapi": VERSION,
        "info": {
            "title": title,
            "version": version,
            "description": (
                "Jobs that workers receive, in Celery's message protocol, version 2: each message is the JSON array "
                "[args, kwargs, embed], of which kwargs are the job's fields."
            ),
        },
        "defaultContentType": "application/json",
        "servers": {"broker": _server(broker_url)},
        "channels": {
            key: {
                **_address(broker, prefix, queue),
                "title": queue,
                "servers": [{"$ref": "#/servers/broker"}],
                "messages": {
                    keys[kind.name]: {"$ref": f"#/components/messages/{keys[kind.name]}"}
                    for kind in kinds
                    if kind.queue == queue
                },
            }
            for queue, key in channels.items()
        },
        "operations": {
            f"receive-{key}": {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{key}"},
                "summary": f"Workers run what comes to the queue {queue}.",
            }
            for queue, key in channels.items()
        },
        "components": {
            "messages": {keys[kind.name]: _message(kind, fields[kind.name]) for kind in kinds},
            "schemas": {name: _draft_7(schema) for name, schema in shared.get("$defs", {}).items()},
        },
    }


def _server(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    protocol, _, _ = parts.scheme.partition("+")
    hosts = parts.netloc.rpartition("@")[2] or "localhost"
    server = {"host": hosts, "protocol": "redis" if protocol in ("unix", "sentinel") else protocol}
    if path := parts.path.rstrip("/"):
        server["pathname"] = path
    return server


def _address(broker: str, prefix: str, queue: str) -> dict[str, Any]:
    """RabbitMQ's queue, or how Redis's streams are named: braces in an address would make a parameter of a queue."""
    if broker == "amqp":
        return {
            "address": f"{prefix}.{queue}",
            "description": f"Priorities have queues of their own: {prefix}.{queue}.high and {prefix}.{queue}.low.",
            "bindings": {"amqp": {"is": "queue", "queue": {"name": f"{prefix}.{queue}", "durable": True}}},
        }
    return {
        "address": None,
        "description": f"Streams named {prefix}:{{{queue}}}:normal, …:high and …:low; entries of two fields, "
        "h the headers as JSON and b the body.",
    }


def _message(kind: Kind, fields: Mapping[str, Any]) -> dict[str, Any]:
    about = inspect.cleandoc(kind.job.__doc__ or "")
    message: dict[str, Any] = {
        "name": kind.name,
        "title": kind.job.__name__,
        "contentType": "application/json",
        "correlationId": {"location": "$message.header#/id", "description": "The job's id."},
        "headers": _headers(kind),
        "payload": {
            "type": "array",
            "items": [{"type": "array", "maxItems": 0}, fields, {"type": ["object", "null"]}],
            "minItems": 3,
            "maxItems": 3,
        },
    }
    if about:
        message["summary"] = " ".join(about.split("\n\n")[0].split())
        message["description"] = about
    return message


def _headers(kind: Kind) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["task", "id"],
        "properties": {
            "task": {"enum": [kind.name, *kind.aliases]},
            "id": {"type": "string", "minLength": 1, "maxLength": 128},
            "lang": {"type": "string"},
            HEADER: {
                "type": "object",
                "properties": {
                    "version": {"type": "integer", "minimum": 1, "maximum": kind.version, "default": kind.version},
                    "attempt": {"type": "integer", "minimum": 1, "default": 1},
                    "priority": {"enum": list(Priority.__args__), "default": kind.priority},  # type: ignore[attr-defined]
                    "key": {"type": "string", "maxLength": 255},
                    "tenant": {"type": "string", "maxLength": 255},
                    "sent_at": {"type": "string", "format": "date-time"},
                    "expires_at": {"type": "string", "format": "date-time"},
                    "traceparent": {"type": "string", "maxLength": 64},
                    "tags": {
                        "type": "array",
                        "maxItems": MOST_TAGS,
                        "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_TAG},
                    },
                },
            },
        },
    }


def _draft_7(schema: Any) -> Any:
    """Schema → draft 7, which writes tuples in another way and has no discriminators."""
    if isinstance(schema, list):
        return [_draft_7(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {}
    for name, value in schema.items():
        if name in ("default", "const", "enum", "examples"):
            converted[name] = value
        elif name in ("properties", "$defs"):
            converted[name] = {field: _draft_7(part) for field, part in value.items()}
        elif name == "prefixItems":
            converted["items"] = _draft_7(value)
        elif name == "items" and "prefixItems" in schema:
            converted["additionalItems"] = _draft_7(value)
        elif name != "discriminator" or not isinstance(value, dict):
            converted[name] = _draft_7(value)
    return converted


def _keys(names: Iterable[str]) -> list[str]:
    """Names as AsyncAPI's identifiers, which have no colon; no two are the same."""
    keys: list[str] = []
    for name in names:
        key = re.sub(r"[^A-Za-z0-9._-]", "-", name)
        while key in keys:
            key += "-"
        keys.append(key)
    return keys
