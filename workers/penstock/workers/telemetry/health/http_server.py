"""`HttpServer`: the port of a worker or dispatcher, with its metrics and its health.

All of it runs on an event loop in a thread of its own, so it answers while the executor's loop is blocked. It reads
little, waits shortly and holds few connections: the port may be open to strangers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from penstock.config.supervision import start_thread
from penstock.workers.telemetry.health.listener import listen, open_listener
from penstock.workers.telemetry.health.siblings import Check

log = logging.getLogger("penstock.http")

REQUEST_SECONDS = 5.0
"""Time limit for a request, from its connection to the last byte of its answer."""
MOST_CONNECTIONS = 32
"""At more, the oldest one is closed: slow strangers must not keep a probe out."""
_HEAD_BYTES = 8192
_RETRY_SECONDS = 0.2
_TEXT = "text/plain; charset=utf-8"


class HttpServer:
    """Serves `/live`, `/ready`, `/startup` and `/metrics`.

    Arguments:
        registry: of the metrics. Its collectors may block: they run in another thread, one scrape at a time.
        live, ready, started: answer the path of their name.
        listener: a socket that listens on the port already, such as one that several processes share.
        complete: makes the page of metrics from those of this process, in the same thread.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        live: Check,
        ready: Check,
        started: Check,
        listener: socket.socket | None = None,
        complete: Callable[[bytes], bytes] = lambda own: own,
    ) -> None:
        self._host, self._port = host, port
        self._metrics = lambda: complete(generate_latest(registry))
        self._checks = {"/live": live, "/ready": ready, "/startup": started}
        self._listener = listener
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake: Callable[[], object] | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """The port that it listens on; the one asked for until it does."""
        return self._port if self._listener is None else int(self._listener.getsockname()[1])

    def start(self, *, patient: bool = False) -> None:
        """Listen, and answer from now on.

        Arguments:
            patient: where the port is in use, by the process that this one follows, listen once it is free.

        Raises:
            ConfigError: the port is in use, or the address is not one of this machine's. Never if `patient`.
        """
        if not patient and self._listener is None:
            self._listener = listen(self._host, self._port)
        self._thread = start_thread("penstock http", self._run, self._stopping, vital=False)

    def close(self) -> None:
        """Listen no more. Requests that are being answered are cut off."""
        self._stopping.set()
        if (wake := self._wake) is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                wake()
        if self._thread is not None:
            self._thread.join(REQUEST_SECONDS)
        if self._listener is not None:
            self._listener.close()

    def _run(self) -> None:
        while self._listener is None and not self._stopping.is_set():
            try:
                self._listener = open_listener(self._host, self._port)
            except OSError as error:
                log.debug("port %d is still in use: %s", self._port, error)
                self._stopping.wait(_RETRY_SECONDS)
        if self._listener is not None:
            asyncio.run(self._serve(self._listener))

    async def _serve(self, listener: socket.socket) -> None:
        loop, closing = asyncio.get_running_loop(), asyncio.Event()
        self._wake = partial(loop.call_soon_threadsafe, closing.set)
        self._scrape: asyncio.Future[bytes] | None = None
        server = await asyncio.start_server(self._connected, sock=listener.dup(), limit=_HEAD_BYTES)
        log.info("metrics and health: http://%s:%d/metrics, /live, /ready, /startup", self._host, self.port)
        try:
            if not self._stopping.is_set():
                await closing.wait()
        finally:
            server.close()
            for writer in self._connections.values():
                writer.transport.abort()
            if self._connections:
                await asyncio.wait(list(self._connections), timeout=1.0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        if len(self._connections) > MOST_CONNECTIONS:
            next(iter(self._connections.values())).transport.abort()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._answer(reader, writer)
                writer.write_eof()
                await reader.read(_HEAD_BYTES)  # until the client has closed: a reset could overtake the answer
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # the client is gone, slow, or does not speak HTTP
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, version = head.partition(b"\r\n")[0].decode("ascii").split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        if method not in ("GET", "HEAD"):
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"GET or HEAD\n"
        else:
            try:
                status, kind, body = await self._page(target.partition("?")[0])
            except Exception:
                log.exception("%r cannot be answered", target)
                status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"see the log of this process\n"
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            *(["Allow: GET, HEAD"] if status == HTTPStatus.METHOD_NOT_ALLOWED else []),
            "Connection: close",
        )
        writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + (b"" if method == "HEAD" else body))
        await writer.drain()

    async def _page(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        if path == "/metrics":
            if self._scrape is None or self._scrape.done():  # requests that come meanwhile share its answer
                self._scrape = asyncio.get_running_loop().run_in_executor(None, self._metrics)
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, await asyncio.shield(self._scrape)
        check = self._checks.get(path)
        if check is None:
            return HTTPStatus.NOT_FOUND, _TEXT, b"/live, /ready, /startup or /metrics\n"
        reason = await asyncio.get_running_loop().run_in_executor(None, check)
        status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
        return status, _TEXT, f"{reason or 'ok'}\n".encode()
