"""Payloads and results as JSON that can be read again: refused where a value would be lost, or no one could read it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pydantic_core
from pydantic import ValidationError

from penstock.config.errors import InvalidJob
from penstock.schemas.jobs.doubts import ALL, SOME
from penstock.schemas.jobs.scrubbing import Scrubber
from penstock.schemas.jobs.sensitive import hide_path, scalars

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from penstock.schemas.jobs.job import Job
    from penstock.schemas.jobs.kind import Kind, Registry

EMBED = b'{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'
_LONGEST_NUMBER = 4300
"""Digits of an integer that Python reads."""
_DEEP = 100
"""Brackets from which on a value may be nested too deep; readers go as deep as 200."""


def payload_of(job: Job, kind: Kind) -> bytes:
    """The fields of a job as JSON.

    Raises:
        InvalidJob: JSON cannot hold a value, or a worker could not read it.
    """
    serializer = job.__pydantic_serializer__
    doubts = kind.doubts
    try:
        payload: bytes = serializer.to_json(job, by_alias=True, warnings="error")
    except Exception:  # it cannot be written, or pydantic warns, maybe wrongly
        try:
            payload = serializer.to_json(job, by_alias=True, warnings=False)
        except Exception as error:  # whatever a value raises
            text = kind.scrub_of_job(job)(str(error))
            raise InvalidJob(f"{kind.name}: it cannot be written as JSON: {text}") from _cause(error, kind)
        doubts = ALL
    if doubts == ALL:
        _check_readable(job, kind, payload)
    elif doubts == SOME:
        try:
            _check_values(payload, lambda: job.model_dump(warnings=False))
        except ValueError as error:
            raise InvalidJob(f"{kind.name}: {error}") from error
    return payload


def result_json(adapter: TypeAdapter[Any], value: Any) -> str:
    """The result of a handler as JSON.

    Raises:
        ValueError: it has a number that JSON has not, or is nested too deep; and what pydantic raises where it cannot
            be written.
    """
    text = adapter.dump_json(value, by_alias=True, warnings=False)
    _check_values(text, lambda: adapter.dump_python(value, warnings=False))
    return text.decode()


def body_of(payload: bytes, embed: bytes = EMBED) -> bytes:
    """Payload and embed → body, all as JSON."""
    return b"[[]," + payload + b"," + embed + b"]"


def explain(error: ValidationError, skip: int = 0, *, kind: Kind | None = None) -> str:
    """A validation error in one line, without the values, which may be sensitive.

    Arguments:
        skip: number of parts of each path that are left out.
        kind: of the payload that was validated, if it was one: its sensitive values are scrubbed from the messages.
    """
    errors = shown_errors(error, skip, kind=kind)
    return "; ".join(f"{'.'.join(map(str, path))}: {message}" if path else message for path, message in errors)


def shown_errors(
    error: ValidationError, skip: int = 0, *, kind: Kind | None = None
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Path and message of each validation error, without the values. A validator's own message may repeat a sensitive
    one; see `explain` for the arguments."""
    shapes = [] if kind is None else kind.shapes
    for item in error.errors(include_url=False, include_context=False, include_input=bool(shapes)):
        path, message = item["loc"][skip:], item["msg"]
        if shapes:
            path, message = hide_path(path, shapes), Scrubber(scalars(item["input"], names=False))(message)
        yield path, message


def _check_readable(job: Job, kind: Kind, payload: bytes) -> None:
    try:
        kind.body.validate_json(body_of(payload))
        _check_values(payload, lambda: job.model_dump(warnings=False))
    except ValidationError as error:
        raise InvalidJob(f"{kind.name}: no worker could read it: {explain(error, skip=1, kind=kind)}") from _cause(
            error, kind
        )
    except Exception as error:  # whatever a validator raises
        text = kind.scrub_of_job(job)(str(error))
        raise InvalidJob(f"{kind.name}: no worker could read it: {text}") from _cause(error, kind)


def _cause(error: Exception, kind: Kind) -> Exception | None:
    """The error, unless its text may have sensitive values."""
    return None if kind.shapes else error


def _check_values(text: bytes, values: Callable[[], Any]) -> None:
    """Check that JSON has lost no number, holds none that is too long, and is not nested too deep.

    Arguments:
        values: makes the values that the JSON was made of, as Python has them.

    Raises:
        ValueError: says which of these.
    """
    if b"null" in text or b"NaN" in text or b"Infinity" in text:
        plain = values()
        # In one call: walking through the values takes longer than all else.
        again = pydantic_core.to_json(plain, inf_nan_mode="constants", serialize_unknown=True, bytes_mode="base64")
        if b"NaN" in again or b"Infinity" in again:
            _refuse_not_finite(plain)
    long, deep = len(text) > _LONGEST_NUMBER, len(text) > 2 * _DEEP
    if long or (deep and text.count(b"[") + text.count(b"{") > _DEEP):
        try:
            pydantic_core.from_json(b"[[" + text + b"]]")  # as deep as in a message
        except ValueError as error:
            raise ValueError(f"no one could read it again: {error}") from error


def _refuse_not_finite(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"it holds {item}, which JSON has not; give None, or text")
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            waiting.extend(item)


def scrubber_of_unread(name: object, body: bytes, registry: Registry) -> Scrubber | None:
    """Replaces all values of a message that cannot be read in what is said about it: a sensitive one may be in any
    place. None: its kind is not known, or has no sensitive fields.

    Arguments:
        name: of the kind, as the message's headers have it.
    """
    kind = registry.find(name) if isinstance(name, str) else None
    if kind is None or not kind.shapes:
        return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    values = content[:2] if isinstance(content, list) else content
    return Scrubber(scalars(values, names=False))
