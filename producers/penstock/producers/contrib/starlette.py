"""Starlette: an `AsyncProducer` for the life of an application, the stream of a job's progress, readiness, traces.

penstock = Penstock(secret=…)
app = Starlette(
    routes=[…, Mount("/penstock", routes=penstock.routes)],
    lifespan=penstock.lifespan,
    middleware=[Middleware(Traces)],
)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import TypedDict

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.config.errors import InvalidToken
from penstock.producers import AsyncProducer
from penstock.producers.contrib.web import (
    ASYNC_STREAMS,
    HEADERS,
    SEEN,
    AnyHandle,
    AsyncStream,
    Streams,
    TooManyStreams,
    async_ready,
)
from penstock.producers.tokens import check_secret, progress_token, read_following_token
from penstock.producers.traces import traced

__all__ = ["Penstock", "State", "Traces", "producer_of"]


class State(TypedDict):
    """State that the lifespan adds to `request.state`."""

    penstock: AsyncProducer


class Penstock:
    """Penstock in a Starlette or FastAPI application; make one instance per application.

    Arguments:
        secret: what tokens for browsers are signed with; at least 16 bytes.
        producer: None: one as `penstock.toml` and the environment say when the application starts. It is closed
            with the application, and connects again if it is used again.
        max_streams: how many jobs browsers may follow at a time in one process.

    Raises:
        ConfigError: the secret is too short, or the limit is not a whole number from 1 up.
    """

    def __init__(self, *, secret: str, producer: AsyncProducer | None = None, max_streams: int = ASYNC_STREAMS) -> None:
        self._secret, self._producer, self._streams = check_secret(secret), producer, Streams(max_streams)
        self.routes = [
            Route("/events", self._events, name="penstock_events"),
            Route("/ready", self._ready, name="penstock_ready"),
        ]

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[State]:
        """Opens the producer and closes it. An application's own lifespan enters it, and yields what it yields.

        Raises:
            ConfigError: a setting is wrong.
        """
        async with self._producer or AsyncProducer.from_settings() as producer:
            yield {"penstock": producer}

    def events_path(
        self, request: HTTPConnection, handle: AnyHandle, expires_in: timedelta = timedelta(hours=1)
    ) -> str:
        """The path of the stream of a job's progress, with a token for it, to hand to a browser."""
        token = progress_token(handle.id, secret=self._secret, expires_in=expires_in)
        return f"{request.url_for('penstock_events').path}?token={token}"

    async def _events(self, request: Request) -> Response:
        try:
            token = read_following_token(request.query_params.get("token", ""), secret=self._secret)
        except InvalidToken as error:
            return JSONResponse({"detail": str(error)}, 403)
        if request.headers.get("last-event-id") == SEEN:
            return Response(status_code=204)
        if request.method == "HEAD":
            return Response(headers=HEADERS)
        try:
            return _StreamResponse(
                self._streams.follow_async(producer_of(request).handle(token.job_id), token.expires_at)
            )
        except TooManyStreams as error:
            return JSONResponse(error.body, 503, error.headers)

    async def _ready(self, request: Request) -> Response:
        status, body = await async_ready(producer_of(request))
        return JSONResponse(body, status)


class _StreamResponse(StreamingResponse):
    """A stream that is closed with its response: Starlette leaves that to the garbage collector."""

    def __init__(self, stream: AsyncStream) -> None:
        super().__init__(stream, headers=HEADERS)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._stream):
            await super().__call__(scope, receive, send)


def producer_of(request: HTTPConnection) -> AsyncProducer:
    """The application's producer.

    Raises:
        RuntimeError: the application runs without `Penstock.lifespan`.
    """
    producer = getattr(request.state, "penstock", None)
    if producer is None:
        raise RuntimeError("there is no producer: give the application lifespan=penstock.lifespan")
    assert isinstance(producer, AsyncProducer)
    return producer


class Traces:
    """ASGI middleware: jobs that a request enqueues carry its trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [value for name, value in scope.get("headers", ()) if name == b"traceparent"]
        with traced(headers[0].decode("latin-1") if len(headers) == 1 else None):
            await self._app(scope, receive, send)
