"""Tornado: an `AsyncProducer` for the life of the loop, the stream of a job's progress, readiness, traces.

class Previews(Traced):
    async def post(self): await self.settings["penstock"].producer.enqueue(…)

async with Penstock(secret=…) as penstock:
    app = Application([…, *penstock.handlers("/penstock")], penstock=penstock)
    app.listen(8000)
    await stopped.wait()
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from tornado.iostream import StreamClosedError
from tornado.routing import URLSpec
from tornado.web import RequestHandler

from penstock.config.errors import InvalidToken
from penstock.producers import AsyncProducer
from penstock.producers.contrib.web import (
    ASYNC_STREAMS,
    HEADERS,
    SEEN,
    AnyHandle,
    Streams,
    TooManyStreams,
    async_ready,
)
from penstock.producers.tokens import check_secret, progress_token, read_following_token
from penstock.producers.traces import follow

__all__ = ["Penstock", "Traced"]


class Penstock:
    """Penstock in a Tornado application; make one instance per application.

    Arguments:
        secret: what tokens for browsers are signed with; at least 16 bytes.
        producer: None: one as `penstock.toml` and the environment say now.
        max_streams: how many jobs browsers may follow at a time in one process.

    Raises:
        ConfigError: a setting is wrong, or the secret is too short.
    """

    def __init__(self, *, secret: str, producer: AsyncProducer | None = None, max_streams: int = ASYNC_STREAMS) -> None:
        self.secret, self.streams = check_secret(secret), Streams(max_streams)
        self.producer = producer or AsyncProducer.from_settings()
        self._prefix = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.producer.close()

    def handlers(self, prefix: str = "/penstock") -> list[URLSpec]:
        """`/events` and `/ready`, for the Application."""
        self._prefix = prefix
        arguments = {"penstock": self}
        return [URLSpec(f"{prefix}/events", _Events, arguments), URLSpec(f"{prefix}/ready", _Ready, arguments)]

    def events_path(self, handle: AnyHandle, expires_in: timedelta = timedelta(hours=1)) -> str:
        """The path of the stream of a job's progress, with a token for it, to hand to a browser."""
        token = progress_token(handle.id, secret=self.secret, expires_in=expires_in)
        return f"{self._prefix}/events?token={token}"


class Traced(RequestHandler):
    """A handler whose jobs carry the trace of its request. A `prepare` of a subclass's own calls this one."""

    def prepare(self) -> None:
        follow(self.request.headers.get("traceparent"))  # each request has a task, so a context, of its own


class _Handler(RequestHandler):
    def initialize(self, penstock: Penstock) -> None:
        self._penstock = penstock


class _Events(_Handler):
    async def get(self) -> None:
        try:
            token = read_following_token(self.get_query_argument("token", ""), secret=self._penstock.secret)
        except InvalidToken as error:
            self.set_status(403)
            self.finish({"detail": str(error)})
            return
        if self.request.headers.get("last-event-id") == SEEN:
            self.set_status(204)
            return
        try:
            stream = self._penstock.streams.follow_async(self._penstock.producer.handle(token.job_id), token.expires_at)
        except TooManyStreams as error:
            self.set_status(503)
            self._add_headers(error.headers)
            self.finish(error.body)
            return
        self._add_headers(HEADERS)
        async with aclosing(stream):
            with suppress(StreamClosedError):  # the browser left
                async for frame in stream:
                    self.write(frame)
                    await self.flush()

    def _add_headers(self, headers: Mapping[str, str]) -> None:
        for name, value in headers.items():
            self.set_header(name, value)


class _Ready(_Handler):
    async def get(self) -> None:
        status, body = await async_ready(self._penstock.producer)
        self.set_status(status)
        self.finish(body)
