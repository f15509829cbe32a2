"""Connections of the gateway: their number, and the size and time of the head of a request, are bounded.

uvicorn reads the head of a request for as long and as far as a client sends it, and keeps a connection that says
nothing for ever (encode/uvicorn#2150, and the "slow HTTP" attacks of https://owasp.org).
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

log = logging.getLogger("penstock.gateway")

MOST_HEAD_BYTES = 32 * 1024
"""The request line and the headers. Other servers have 8 to 64 KiB."""
HEAD_SECONDS = 10.0
"""From the beginning of a connection, or of a further request on it, to the end of its head."""
_SPARE_DESCRIPTORS = 128
"""File descriptors that are left for the broker, the ledger and files."""
_WHY = {
    408: f"the head of the request took longer than {HEAD_SECONDS:g} s",
    431: f"the head of the request is over {MOST_HEAD_BYTES // 1024} KiB",
    503: "this gateway has as many connections as it may",
}


@cache
def bounded(most: int) -> type[asyncio.Protocol]:
    """The protocol of a server that holds at most so many connections, or what its limit of file descriptors allows."""
    allowed = _most_descriptors() - _SPARE_DESCRIPTORS
    return type("Connection", (Connection,), {"most": max(min(most, allowed), 1)})


class Connection(HttpToolsProtocol):
    """A connection. Where a new one is too many, the one that has been idle for longest makes room for it.

    Attributes:
        most: connections of the server.
        idle_since: on the loop's clock; None: a request of it is under way.
    """

    most = 1
    idle_since: float | None
    _head_left: int | None
    """Bytes that its head may still have; None: it is complete."""
    _timer: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since, self._timer = self.loop.time(), None
        self._begin_head()
        if len(self.connections) > self.most and not _close_most_idle(self):
            log.warning("a connection is refused: %d are open", self.most)
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_left is None and self.idle_since is not None:
            self._begin_head()  # of the next request on this connection
        while data and self._head_left is not None:
            part, data = data[: self._head_left], data[self._head_left :]
            self._head_left -= len(part)
            super().data_received(part)
            if self.transport.is_closing():
                return
            if (protocol := self.transport.get_protocol()) is not self:  # a WebSocket from here on
                if data:
                    cast("asyncio.Protocol", protocol).data_received(data)
                return
            if self._head_left == 0:
                self._refuse(431)
                return
        if data:
            super().data_received(data)

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_left is None:  # a request that was sent before the one under way is answered
            self._begin_head()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._head_left = self.idle_since = None
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline:
            self.idle_since = self.loop.time()

    def _begin_head(self) -> None:
        self._head_left = MOST_HEAD_BYTES
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse, 408)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.idle_since is None:  # an answer to an earlier request may be under way
            self.transport.abort()
            return
        why = _WHY[status].encode()
        head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(why)
        self.transport.write(STATUS_LINE[status] + head + why)
        self.transport.close()


def _close_most_idle(newcomer: Connection) -> bool:
    """Close the connection that has been idle for longest, other than the newcomer. False: all others are at work."""
    others = (other for other in newcomer.connections if isinstance(other, Connection) and other is not newcomer)
    idle = [other for other in others if other.idle_since is not None and not other.transport.is_closing()]
    if not idle:
        return False
    min(idle, key=lambda other: other.idle_since or 0.0).transport.abort()
    return True


def _most_descriptors() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 1_000_000
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else soft


def without_queries(record: logging.LogRecord) -> bool:
    """A filter that leaves the query of a URL out of uvicorn's lines about WebSockets: a browser's token is there."""
    if isinstance(record.args, tuple):
        record.args = tuple(_without_query(value) for value in record.args)
    return True


def _without_query(value: Any) -> Any:
    return value.partition("?")[0] + "?…" if isinstance(value, str) and "?" in value else value
