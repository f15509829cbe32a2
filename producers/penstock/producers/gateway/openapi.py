"""The OpenAPI document: what FastAPI knows of the routes, and an operation for each kind, with its fields' schema."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from penstock.producers.gateway.auth.verbs import ROUTES
from penstock.producers.gateway.models.dead_letters import Discard, Replay
from penstock.producers.gateway.problems import MEDIA_TYPE
from penstock.producers.gateway.requests.bodies import JSON
from penstock.producers.gateway.requests.options import parameters
from penstock.producers.gateway.routes.submit import Accepted, Batch
from penstock.schemas.jobs.kind import Kind, registry
from penstock.schemas.verbs import Verb

DESCRIPTION = (
    "Background jobs over HTTP. Every error is a problem (RFC 9457) whose `type` says what it is; `errors` points at "
    "what is wrong."
)
_REFERENCE = "#/components/schemas/"
_SUBMIT = "submit."

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "`urn:penstock:problem:` and its name."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "detail": {"type": "string"},
                    "pointer": {"type": "string", "description": "A JSON Pointer into the body."},
                    "parameter": {"type": "string"},
                    "header": {"type": "string"},
                },
            },
        },
    },
}
_KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Of your making: a repeated request with the same one is done once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x20\x21\x23-\x7e]+$"},
}


def document(app: FastAPI, kinds: Iterable[Kind] | None = None) -> dict[str, Any]:
    """The document of an app as it is now: kinds may have been imported since the last one.

    Arguments:
        kinds: those with an operation; None: all.
    """
    openapi = get_openapi(
        title="Penstock", version=version("penstock"), description=DESCRIPTION, routes=app.routes, tags=app.openapi_tags
    )
    schemas: dict[str, Any] = openapi.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in (Accepted, Batch, Replay, Discard):
        schemas |= _placed(model.__name__, model.model_json_schema(ref_template=_REFERENCE + "{model}"))
    many = openapi["paths"]["/v1/jobs"]["post"]
    many["requestBody"]["content"][JSON]["schema"] = {"$ref": _REFERENCE + "Batch"}
    many.setdefault("parameters", []).append(_KEY_HEADER)
    for kind in registry if kinds is None else kinds:
        openapi["paths"][f"/v1/jobs/{kind.name}"] = {"post": _operation(kind, schemas)}
    openapi["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a JWT of the identity provider."}
    }
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            of_kind = operation["operationId"].startswith(_SUBMIT)
            _complete(operation, ROUTES[method.upper(), "/v1/jobs/{kind}" if of_kind else path])
    return openapi


def _operation(kind: Kind, schemas: dict[str, Any]) -> dict[str, Any]:
    name = component(kind)
    try:
        fields = kind.job.model_json_schema(by_alias=True, ref_template=f"{_REFERENCE}{name}.{{model}}")
    except Exception:  # pydantic raises many exception types for what JSON Schema cannot express
        fields = {"type": "object"}
    for model, definition in fields.pop("$defs", {}).items():
        schemas[f"{name}.{model}"] = definition
    schemas[name] = fields
    answer = {"content": {JSON: {"schema": {"$ref": _REFERENCE + "Accepted"}}}}
    return {
        "operationId": _SUBMIT + name,
        "tags": ["jobs"],
        "summary": f"Send {kind.name}",
        "description": (kind.job.__doc__ or "").strip(),
        "parameters": [*parameters(), _KEY_HEADER],
        "requestBody": {
            "required": any(info.is_required() for info in kind.job.model_fields.values()),
            "content": {JSON: {"schema": {"$ref": _REFERENCE + name}}},
        },
        "responses": {
            "202": {"description": "The broker has the job.", **answer},
            "200": {"description": "An earlier job takes the place of this unique one.", **answer},
        },
    }


def component(kind: Kind) -> str:
    """The name of a kind's fields among the schemas."""
    return kind.name.replace(":", "_")


def _placed(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    definitions: dict[str, Any] = schema.pop("$defs", {})
    return {name: schema, **definitions}


def _complete(operation: dict[str, Any], verb: Verb | None) -> None:
    """Add what all operations have: they may be refused, and most demand a verb."""
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = {
        "description": "A problem.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE + "Problem"}}},
    }
    if verb is not None:
        operation["security"] = [{"bearer": [str(verb)]}]


def document_text(app: FastAPI, kinds: Iterable[Kind] | None = None) -> str:
    """The document as text; see `document`."""
    return json.dumps(document(app, kinds), indent=2, ensure_ascii=False)
