"""Bodies of requests: bounded in size and time, and JSON in UTF-8."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Mapping
from email.message import Message
from types import coroutine
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from penstock.producers.gateway.problems import Problem, invalid_body, invalid_json

JSON = "application/json"
_Model = TypeVar("_Model", bound=BaseModel)


class BodyLimits:
    """ASGI middleware: reading a body raises a `Problem` if it is too large (413) or too slow (408)."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_seconds: float) -> None:
        self._app, self._max_bytes, self._timeout_seconds = app, max_bytes, timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds

        async def limited() -> Event:
            nonlocal read, whole
            if whole:  # further events only report that the client has gone
                return await receive()
            if not read and (announced := _announced(scope)) and announced > self._max_bytes:
                raise self._too_large()
            waiting = _next_of(receive)
            try:
                # A body of a few KiB is there with the head: it needs no timer, which takes a tenth of a request.
                step = waiting.send(None)
            except StopIteration as end:
                event: Event = end.value
            else:
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await _rest_of(waiting, step)
                except TimeoutError:
                    detail = f"the body took longer than {self._timeout_seconds:g} s"
                    raise Problem(408, "body-too-slow", detail, headers={"Connection": "close"}) from None
            read += len(event.get("body", b""))
            whole = not event.get("more_body", False)
            if read > self._max_bytes:
                raise self._too_large()
            return event

        await self._app(scope, limited, send)

    def _too_large(self) -> Problem:
        detail = f"the body is over the limit of {self._max_bytes} bytes"
        return Problem(413, "body-too-large", detail, headers={"Connection": "close"}, limit=self._max_bytes)


async def _next_of(receive: Receive) -> Event:
    """A coroutine, also where `receive` returns another awaitable."""
    return await receive()


@coroutine
def _rest_of(waiting: Coroutine[Any, Any, Event], step: Any) -> Generator[Any, Any, Event]:
    """Await a coroutine that has been run up to where it first waits: for `step`."""
    try:
        while True:
            try:
                answer = yield step
            except BaseException as error:  # such as its cancellation, which it may answer
                step = waiting.throw(error)
            else:
                step = waiting.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


async def read_json(request: Request) -> bytes:
    """The body of a request whose type is JSON in UTF-8, not parsed. An empty one counts as `{}`.

    Raises:
        Problem: (415) its type is another one; (413, 408) see `BodyLimits`.
    """
    content_type = request.headers.get("content-type")
    if content_type not in (None, JSON):
        _check_type(content_type)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "wrong-encoding", "the body must not be compressed")
    body = await request.body()
    if b"NaN" in body or b"Infinity" in body:  # not JSON, though Python writes it and pydantic reads it
        try:
            from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise invalid_json(str(error)) from None
    return body or b"{}"


async def read_model(request: Request, model: type[_Model], what: str) -> _Model:
    """The body as this model. Raises Problem: see `read_json` and `invalid_body`."""
    body = await read_json(request)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error, what) from None


def json_body(schema: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    """The body of a route that reads it by itself, for OpenAPI."""
    return {"requestBody": {"required": required, "content": {JSON: {"schema": schema}}}}


def _check_type(content_type: str | None) -> None:
    message = Message()
    message["Content-Type"] = content_type or ""
    media_type = message.get_content_type()
    if not (media_type == JSON or (media_type.startswith("application/") and media_type.endswith("+json"))):
        raise Problem(
            415,
            "wrong-type",
            "the body must be application/json",
            headers={"Accept": JSON},
            errors=[{"header": "Content-Type", "detail": "must be application/json"}],
        )
    charset = str(message.get_param("charset", "utf-8")).lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(
            415,
            "wrong-charset",
            "the body must be JSON in UTF-8",
            errors=[{"header": "Content-Type", "detail": "charset must be utf-8"}],
        )
