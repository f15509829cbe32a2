"""A job's course as Server-Sent Events and over a WebSocket.

Both send `status` for each state or progress, and `end` for the last. With an API key or a JWT they carry the job as
`GET /v1/jobs/{id}` does; with the token of a web backend, which a browser may hold, only state and progress.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from penstock.config.errors import InvalidToken, LedgerUnavailable, WatchClosed
from penstock.ledger.queries.status import JobStatus
from penstock.producers.gateway.dependencies import Deps, Here, authenticated, deps_of
from penstock.producers.gateway.problems import Problem
from penstock.producers.gateway.routes.jobs import JobId, Token, view, visible
from penstock.schemas.verbs import Verb

router = APIRouter(tags=["jobs"])

KEEP_ALIVE_SECONDS = 15.0
"""Silence after which a comment is sent: proxies cut silent connections, and a server notices only by sending that a
client has left."""
_HEADERS = {"X-Accel-Buffering": "no"}  # nginx would buffer the events

Show = Callable[[JobStatus], str]
Check = Callable[[], Awaitable[datetime | None]]
"""Returns when the credential expires; None: it does not."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A job that a client may follow.

    Attributes:
        course: its statuses, until its end.
        show: JSON of a status, as this client may see it.
        caller_id: whom the stream counts for.
        check: raises Problem once the credential does not hold any more.
    """

    course: AsyncIterator[JobStatus]
    show: Show
    caller_id: str
    check: Check


async def followed(
    connection: HTTPConnection,
    id: JobId,
    token: Token = None,
) -> Followed:
    """Raises Problem or PenstockError: the caller, or the token, is not for this job; or its kind is not tracked."""
    deps = deps_of(connection)
    if token is not None:

        async def check_token() -> datetime | None:
            return deps.check_token(token, id, Verb.READ).expires_at

        await check_token()
        return Followed(deps.producer.handle(id).watch(), _progress_only, f"token:{id}", check_token)
    caller = await authenticated(connection)
    status = await visible(deps, caller, id)

    async def check_caller() -> datetime | None:
        return (await deps.callers.authenticate(connection.headers.get("authorization"))).expires_at

    return Followed(deps.producer.handle(id, status.kind or "").watch(), _all, caller.id, check_caller)


@router.get(
    "/v1/jobs/{id}/events",
    operation_id="followJob",
    response_class=Response,
    responses={
        200: {
            "description": "Events `status` and `end`, whose data is the job.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "The client has seen the end already (its `Last-Event-ID` says so)."},
    },
)
async def events(request: Request, job: Annotated[Followed, Depends(followed)], deps: Here) -> Response:
    """Follow the job until its end, as Server-Sent Events."""
    if request.headers.get("last-event-id") == "end":
        return Response(status_code=204)  # which makes a browser stop reconnecting

    async def frames() -> AsyncIterator[bytes]:
        yield b"retry: 3000\n\n"
        async with aclosing(_statuses(deps, job)) as course:
            async for status in course:
                if status is None:
                    yield b": still here\n\n"
                else:
                    name = "end" if status.final else "status"
                    yield f"event: {name}\nid: {name}\ndata: {job.show(status)}\n\n".encode()

    return _EventStream(deps, job.caller_id, frames())


@router.websocket("/v1/jobs/{id}/ws")
async def socket(websocket: WebSocket, job: Annotated[Followed, Depends(followed)], deps: Here) -> None:
    """Follow the job until its end: text messages `{"event": …, "job": …}`, then close code 1000."""
    _check_origin(websocket, deps)
    with _counted(deps, job.caller_id):
        await websocket.accept()
        sending = asyncio.create_task(_send(websocket, deps, job))
        leaving = asyncio.create_task(_wait_until_closed(websocket))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not leaving.done():
                with suppress(WebSocketDisconnect):
                    sending.result()  # what it raises is logged by the server, and the client connects again
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)


class _EventStream(StreamingResponse):
    """Server-Sent Events that count as a stream from the first byte to the last."""

    def __init__(self, deps: Deps, caller_id: str, frames: AsyncIterator[bytes]) -> None:
        super().__init__(frames, headers=_HEADERS, media_type="text/event-stream")
        self._deps, self._caller_id = deps, caller_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _counted(self._deps, self._caller_id):
            await super().__call__(scope, receive, send)


async def _send(websocket: WebSocket, deps: Deps, job: Followed) -> None:
    code = 1001  # 1001 Going Away: clients reconnect
    async with aclosing(_statuses(deps, job)) as course:
        async for status in course:
            if status is not None:  # the server sends the keep-alive pings
                name = "end" if status.final else "status"
                await websocket.send_text(f'{{"event":"{name}","job":{job.show(status)}}}')
                code = 1000 if status.final else code
    await websocket.close(code)


async def _wait_until_closed(websocket: WebSocket) -> None:
    """Wait until the client leaves; its messages are ignored."""
    try:
        while True:
            await websocket.receive()
    except (WebSocketDisconnect, RuntimeError):
        return


async def _statuses(deps: Deps, job: Followed) -> AsyncGenerator[JobStatus | None]:
    """A job's statuses until its end, with None after a silence. Ends early when the gateway closes, the ledger is
    unavailable, or the credential does not hold any more: the client reconnects by itself, and then gets the
    reason."""
    watch: Any = job.course
    closing = asyncio.create_task(deps.closing.wait())
    coming: asyncio.Task[JobStatus] | None = None
    try:
        while (left := await _seconds_left(job)) > 0:
            coming = coming or asyncio.create_task(anext(watch))
            done, _ = await asyncio.wait(
                {coming, closing}, timeout=min(left, KEEP_ALIVE_SECONDS), return_when=asyncio.FIRST_COMPLETED
            )
            if closing in done:
                return
            if coming in done:
                status, coming = coming.result(), None
                yield status
            else:
                yield None
    except (StopAsyncIteration, WatchClosed, LedgerUnavailable):
        return
    finally:
        closing.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await watch.aclose()


async def _seconds_left(job: Followed) -> float:
    """How long the client's credential holds; 0: it does not, any more."""
    try:
        expires_at = await job.check()
    except (Problem, InvalidToken):
        return 0.0
    return math.inf if expires_at is None else (expires_at - datetime.now(UTC)).total_seconds()


def _check_origin(websocket: WebSocket, deps: Deps) -> None:
    """Raises Problem (403): a page of another origin opens it. Browsers leave that check to the server (RFC 6455,
    section 10.2)."""
    origin = websocket.headers.get("origin")
    if origin is None or origin in deps.settings.gateway.cors_origins:
        return
    if urlsplit(origin).netloc != websocket.headers.get("host"):
        raise Problem(403, "origin-not-allowed", "pages of this origin may not open WebSockets here; see cors_origins")


@contextmanager
def _counted(deps: Deps, caller_id: str) -> Iterator[None]:
    """Raises Problem (503): as many jobs are followed as may be; (429): this caller follows as many as it may."""
    limits = deps.settings.gateway
    if deps.streams.total() >= limits.max_streams:
        detail = "too many jobs are followed at this gateway; try again later"
        raise Problem(503, "too-many-streams", detail, headers={"Retry-After": "5"})
    if deps.streams[caller_id] >= limits.max_streams_per_caller:
        detail = f"at most {limits.max_streams_per_caller} streams of a caller; try again when one has ended"
        raise Problem(429, "too-many-streams", detail, headers={"Retry-After": "5"})
    deps.metrics.streams.inc()
    deps.streams[caller_id] += 1
    try:
        yield
    finally:
        deps.streams[caller_id] -= 1
        if not deps.streams[caller_id]:
            del deps.streams[caller_id]
        deps.metrics.streams.dec()


def _all(status: JobStatus) -> str:
    return view(status).model_dump_json()


def _progress_only(status: JobStatus) -> str:
    return view(status).model_dump_json(include={"id", "state", "attempt", "progress"})
