"""The two forms of a task's message: as an adopted job, and as a typed one. Its senders and its workers need not move
to types at the same moment."""

from __future__ import annotations

from typing import Any

from penstock.config.errors import UndecodableMessage
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.job import Job

Body = tuple[list[Any], dict[str, Any], dict[str, Any] | None]
"""Positional arguments, keyword arguments, embed."""

EMBED_OF_CELERY = ("callbacks", "errbacks", "chain", "chord")
FOLLOW_UPS_OF_DRAMATIQ = (
    "pipe_target",
    "on_success",
    "on_failure",
    "on_retry_exhausted",
    "group_completion_callbacks",
)
"""Dramatiq's options that ask for something after the job."""

_ADOPTED = frozenset(AdoptedJob.model_fields)


def may_be_of_other_form(job: type[Job], body: bytes) -> bool:
    """Whether a body that a class refuses may be in the form that it does not have. Quick, and true too often."""
    return issubclass(job, AdoptedJob) or b'"request":' in body


def in_form_of(job: type[Job], body: Body) -> Body:
    """A body in the form that a class reads; in any other case as it was.

    Raises:
        UndecodableMessage: (`invalid_payload`) an adopted task's arguments are not JSON, so no field can hold them.
    """
    args, payload, embed = body
    if issubclass(job, AdoptedJob):
        return body if not args and payload.keys() <= _ADOPTED else ([], {"args": args, "kwargs": payload}, embed)
    if args or payload.keys() != _ADOPTED or "request" in job.model_fields:
        return body
    args, kwargs, request = payload["args"], payload["kwargs"], payload["request"]
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(request, dict):
        return body
    if "penstock" in request:
        raise UndecodableMessage(
            "invalid_payload", "the arguments of the task are not plain JSON: only a worker that adopts it reads them"
        )
    options = request.get("options") or {}
    follow_ups = {name: request[name] for name in EMBED_OF_CELERY if request.get(name)}
    follow_ups |= {name: options[name] for name in FOLLOW_UPS_OF_DRAMATIQ if options.get(name)}
    return args, kwargs, {**(embed or {}), **follow_ups}
