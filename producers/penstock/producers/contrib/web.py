"""Shared by the modules for web frameworks: a job's progress as Server-Sent Events, and the readiness check."""

from __future__ import annotations

import atexit
import json
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from penstock.config.errors import BrokerUnavailable, ConfigError, LedgerUnavailable, WaitTimeout, WatchClosed
from penstock.producers import AsyncJobHandle, AsyncProducer, JobHandle, Producer
from penstock.producers.traces import traced

if TYPE_CHECKING:
    from penstock.ledger.queries.status import JobStatus

log = logging.getLogger("penstock.producers")

AnyHandle = JobHandle | AsyncJobHandle
"""What a token is made for."""

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would gather the frames
}
SEEN = "end"
"""A `Last-Event-ID` by which a browser says that it has seen the end. Answered with 204, it stops asking."""
KEEP_ALIVE_SECONDS = 15.0
"""Silence after which something is sent: proxies cut what is silent, and only by sending a server notices who left."""
_BEGIN, _KEEP_ALIVE = b"retry: 3000\n\n", b": still here\n\n"
_ENDED = (WatchClosed, LedgerUnavailable)
"""What ends a stream before its job has ended. The browser comes back by itself."""


def frames(handle: JobHandle, expires_at: float = math.inf) -> Generator[bytes]:
    """A job's course until its end, as Server-Sent Events: `status` for each state or progress, `end` for the last.

    Their data is a JSON object with `id`, `state`, `attempt` and `progress` (null, or `done`, `total`, `note`). Results
    and errors are not for every eye and stay out.

    Arguments:
        expires_at: when the browser's token expires, in seconds since the epoch. The frames end with it: the browser
            comes back, and is refused.
    """
    yield _BEGIN
    last = b""
    while (left := expires_at - time.time()) > 0:
        try:
            for status in handle.watch(min(KEEP_ALIVE_SECONDS, left)):
                if time.time() >= expires_at:
                    return
                if (frame := _frame(status)) != last:
                    last = frame
                    yield frame
            return
        except WaitTimeout:
            yield _KEEP_ALIVE
        except _ENDED as error:
            log.info("a stream of job %s ends: %s", handle.id, error)
            return


async def async_frames(handle: AsyncJobHandle, expires_at: float = math.inf) -> AsyncGenerator[bytes, None]:
    """See `frames`."""
    yield _BEGIN
    last = b""
    while (left := expires_at - time.time()) > 0:
        watch: Any = handle.watch(min(KEEP_ALIVE_SECONDS, left))
        try:
            async with aclosing(watch):
                async for status in watch:
                    if time.time() >= expires_at:
                        return
                    if (frame := _frame(status)) != last:
                        last = frame
                        yield frame
            return
        except WaitTimeout:
            yield _KEEP_ALIVE
        except _ENDED as error:
            log.info("a stream of job %s ends: %s", handle.id, error)
            return


class Stream(Iterator[bytes]):
    """Frames of a job that count as one of the process's streams until they end, or are closed or dropped."""

    def __init__(self, handle: JobHandle, expires_at: float, open_streams: WeakSet[Any]) -> None:
        self._frames, self._open_streams = frames(handle, expires_at), open_streams

    def __next__(self) -> bytes:
        try:
            return next(self._frames)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._open_streams.discard(self)
        self._frames.close()


class AsyncStream(AsyncIterator[bytes]):
    """See `Stream`. `close`, which Django calls, ends only the counting; the frames end when they are dropped."""

    def __init__(self, handle: AsyncJobHandle, expires_at: float, open_streams: WeakSet[Any]) -> None:
        self._frames, self._open_streams = async_frames(handle, expires_at), open_streams

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._frames)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._open_streams.discard(self)

    async def aclose(self) -> None:
        self.close()
        await self._frames.aclose()


AnyStream = TypeVar("AnyStream", Stream, AsyncStream)

WSGI_STREAMS = 4
"""Streams of a WSGI process if no other limit is given: each holds a thread, and gunicorn's `--threads` are few."""
ASYNC_STREAMS = 1000


class TooManyStreams(Exception):
    """The process follows as many jobs as it may. The answer is a 503 with these headers and this body."""

    headers = {"Retry-After": "5"}  # noqa: RUF012
    body = {"detail": "too many jobs are followed here; try again later"}  # noqa: RUF012


class Streams:
    """The streams of a process.

    Arguments:
        limit: how many may be open at a time.

    Raises:
        ConfigError: the limit is not a whole number from 1 up.
    """

    def __init__(self, limit: object) -> None:
        if isinstance(limit, str) and limit.isdecimal():  # from an .ini file
            limit = int(limit)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ConfigError(f"max_streams is {limit!r}; give a whole number from 1 up")
        self._limit = limit
        self._lock = threading.Lock()
        self._open: WeakSet[Any] = WeakSet()  # a stream that its server dropped without closing it does not count

    def follow(self, handle: JobHandle, expires_at: float = math.inf) -> Stream:
        """Raises TooManyStreams. For the arguments see `frames`."""
        return self._add(Stream(handle, expires_at, self._open))

    def follow_async(self, handle: AsyncJobHandle, expires_at: float = math.inf) -> AsyncStream:
        """Raises TooManyStreams. For the arguments see `frames`."""
        return self._add(AsyncStream(handle, expires_at, self._open))

    def _add(self, stream: AnyStream) -> AnyStream:
        with self._lock:
            if len(self._open) >= self._limit:
                raise TooManyStreams
            self._open.add(stream)
        return stream


def _frame(status: JobStatus) -> bytes:
    progress = status.progress
    data = {
        "id": status.id,
        "state": status.state,
        "attempt": status.attempt,
        "progress": progress and {"done": progress.done, "total": progress.total, "note": progress.note},
    }
    event = f"event: end\nid: {SEEN}" if status.final else "event: status"
    return f"{event}\ndata: {json.dumps(data)}\n\n".encode()


def ready(producer: Producer) -> tuple[int, dict[str, str]]:
    """Status and body of a readiness route: 503 while the broker does not answer. The cause is only logged."""
    try:
        producer.ping()
    except BrokerUnavailable as error:
        return _unready(error)
    return _READY


async def async_ready(producer: AsyncProducer) -> tuple[int, dict[str, str]]:
    """See `ready`."""
    try:
        await producer.ping()
    except BrokerUnavailable as error:
        return _unready(error)
    return _READY


_READY = (200, {"broker": "ok"})


def _unready(error: BrokerUnavailable) -> tuple[int, dict[str, str]]:
    log.warning("not ready: %s", error)
    return 503, {"broker": "unavailable"}


def open_producer(producer: Producer | None = None) -> Producer:
    """A producer for the life of a WSGI process, which has no hook for its end but this: closed at exit.

    Raises:
        ConfigError: a setting is wrong.
    """
    producer = producer or Producer.from_settings()
    atexit.register(producer.close)
    return producer


class TracesWsgi:
    """WSGI middleware: jobs that a request enqueues carry its trace."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        with traced(environ.get("HTTP_TRACEPARENT")):
            return self._app(environ, start_response)
