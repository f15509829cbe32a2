"""A job's course as Server-Sent Events and over a WebSocket.

Both send `status` for each state or progress, and `end` for the last. With an API key or a JWT they carry the job as
`GET /v1/jobs/{id}` does; with the token of a web backend, which a browser may hold, only state and progress.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from penstock.config.errors import LedgerUnavailable, WatchClosed
from penstock.ledger.queries.status import JobStatus
from penstock.producers.gateway.dependencies import Deps, Here, authenticated, services
from penstock.producers.gateway.problems import Problem
from penstock.producers.gateway.routes.jobs import JobId, view, visible
from penstock.producers.tokens import read_progress_token

router = APIRouter(tags=["jobs"])

KEEP_ALIVE_SECONDS = 15.0
"""Silence after which a comment is sent: proxies cut silent connections, and a server notices only by sending that a
client has left."""
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would buffer the events

Show = Callable[[JobStatus], str]


@dataclass(frozen=True, slots=True)
class Followed:
    """A job that a client may follow.

    Attributes:
        course: its statuses, until its end.
        show: JSON of a status, as this client may see it.
    """

    course: AsyncIterator[JobStatus]
    show: Show


async def followed(
    connection: HTTPConnection,
    id: JobId,
    token: Annotated[
        str | None, Query(max_length=1024, description="A web backend's token for this job, in place of a key.")
    ] = None,
) -> Followed:
    """Raises Problem or PenstockError: the caller, or the token, is not for this job; or its kind is not tracked."""
    deps = await services(connection)
    if token is not None:
        if read_progress_token(token, secret=deps.secret) != id:
            raise Problem(403, "token-not-allowed", "this token is for another job")
        return Followed(deps.producer.handle(id).watch(), _progress_only)
    status = await visible(deps, await authenticated(connection), id)
    return Followed(deps.producer.handle(id, status.kind or "").watch(), _all)


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
    _check_capacity(deps)

    async def frames() -> AsyncIterator[bytes]:
        yield b"retry: 3000\n\n"
        async with aclosing(_statuses(deps, job.course)) as course:
            async for status in course:
                if status is None:
                    yield b": still here\n\n"
                else:
                    name = "end" if status.final else "status"
                    yield f"event: {name}\nid: {name}\ndata: {job.show(status)}\n\n".encode()

    return StreamingResponse(frames(), headers=_HEADERS, media_type="text/event-stream")


@router.websocket("/v1/jobs/{id}/ws")
async def socket(websocket: WebSocket, job: Annotated[Followed, Depends(followed)], deps: Here) -> None:
    """Follow the job until its end: text messages `{"event": …, "job": …}`, then close code 1000."""
    _check_capacity(deps)
    await websocket.accept()
    sending = asyncio.create_task(_send(websocket, deps, job))
    leaving = asyncio.create_task(_wait_until_closed(websocket))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send(websocket: WebSocket, deps: Deps, job: Followed) -> None:
    code = 1001  # 1001 Going Away: clients reconnect
    async with aclosing(_statuses(deps, job.course)) as course:
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


async def _statuses(deps: Deps, watch: Any) -> AsyncGenerator[JobStatus | None]:
    """A job's statuses until its end, with None after a silence. Ends early when the gateway closes, or the ledger is
    unavailable: the client reconnects by itself."""
    with _counted(deps):
        closing = asyncio.create_task(deps.closing.wait())
        coming: asyncio.Task[JobStatus] | None = None
        try:
            while True:
                coming = coming or asyncio.create_task(anext(watch))
                done, _ = await asyncio.wait(
                    {coming, closing}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
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


@contextmanager
def _counted(deps: Deps) -> Iterator[None]:
    deps.metrics.streams.inc()
    deps.streams += 1
    try:
        yield
    finally:
        deps.streams -= 1
        deps.metrics.streams.dec()


def _check_capacity(deps: Deps) -> None:
    if deps.streams >= deps.settings.gateway.max_streams:
        detail = "too many jobs are followed at this gateway; try again later"
        raise Problem(503, "too-many-streams", detail, headers={"Retry-After": "5"})


def _all(status: JobStatus) -> str:
    return view(status).model_dump_json()


def _progress_only(status: JobStatus) -> str:
    return view(status).model_dump_json(include={"id", "state", "attempt", "progress"})
