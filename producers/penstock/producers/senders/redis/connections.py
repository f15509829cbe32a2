"""Connections to Redis: redis-py's, without its client and pool, whose cost per call exceeds that of an XADD.

`call` takes commands already packed (`pack`) and returns their replies. The redis library is imported with the first
connection: its import alone takes a third of a second.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.producers.senders.redis.protocol import Reply, exchange, explain
from penstock.producers.senders.redis.servers import ANSWERS, TRUST_IDLE_SECONDS, Servers, connect, new_connection

_PATIENCE_SECONDS = 0.25
"""The longest wait for a turn on a shared connection: the call before may be waiting for a silent server."""


class RedisConnections:
    """Synchronous connections, one for each thread that is calling now. Thread-safe, and safe after a fork.

    Arguments:
        shared: threads take turns on one connection; who waits too long for that has another one for its call.
        name: of the connections, in `CLIENT LIST`.
    """

    def __init__(self, url: str, *, timeout_seconds: float, shared: bool = False, name: str | None = None) -> None:
        self.url, self.timeout_seconds = url, timeout_seconds
        self._turn = threading.Lock() if shared else None
        self._options = {} if name is None else {"client_name": name.replace(" ", "_")}
        self._servers = Servers(url, timeout_seconds)
        self.address = self._servers.address
        self._idle: deque[tuple[Any, float]] = deque()

    @property
    def server_url(self) -> str:
        """URL of the server that the last connection was made to."""
        return self._servers.server_url

    def call(self, packed: bytes, replies: int = 1) -> list[Reply]:
        """Send commands and read as many replies.

        A connection that turns out to be closed is replaced once and everything is sent again. What the server had
        executed before the cut is then there twice, under the same job id: the claim absorbs it.

        Raises:
            BrokerUnavailable: within the timeout.
        """
        if self._turn is None:
            return self._call(packed, replies)
        has_turn = self._turn.acquire(timeout=_PATIENCE_SECONDS)
        try:
            return self._call(packed, replies)
        finally:
            if has_turn:
                self._turn.release()

    def _call(self, packed: bytes, replies: int) -> list[Reply]:
        from redis import exceptions

        connection, used_at = self._take()
        reused = connection is not None and time.monotonic() - used_at < TRUST_IDLE_SECONDS
        try:
            if not reused:
                if connection is not None:
                    connection.disconnect()
                connection = self.connect()
            try:
                result = exchange(connection, packed, replies, exceptions.ResponseError)
            except exceptions.ConnectionError:
                if not reused:
                    raise
                self._drop_idle()  # they were cut together
                connection = self.connect()
                result = exchange(connection, packed, replies, exceptions.ResponseError)
        except exceptions.RedisError as error:
            self.fail(error)
        self._idle.append((connection, time.monotonic()))
        if self._turn is not None and len(self._idle) > 1:
            self._drop_idle(keep=1)
        return result

    def execute(self, *commands: bytes) -> list[Reply]:
        """Send commands that Redis has no reason to refuse, as `call` does. Returns a reply for each.

        Raises:
            BrokerUnavailable: within the timeout, or Redis refused one of them.
        """
        replies = self.call(b"".join(commands), len(commands)) if commands else []
        for reply in replies:
            if isinstance(reply, Exception):
                self.fail(reply)
        return replies

    def connect(self, **options: Any) -> Any:
        """A new, connected `redis.connection.Connection` that the caller owns.

        Raises:
            BrokerUnavailable: within the timeout.
        """
        from redis import exceptions

        connection = None
        try:
            connection = new_connection(self._servers.find(), self.timeout_seconds, **(self._options | options))
            connect(connection, self.timeout_seconds)
            if questions := self._servers.questions():
                self._servers.check(*exchange(connection, questions, ANSWERS, exceptions.ResponseError))
        except (exceptions.RedisError, OSError) as error:
            if connection is not None:
                connection.disconnect()
            self.fail(error)
        except ConfigError:
            if connection is not None:
                connection.disconnect()
            raise
        return connection

    def call_on(
        self, connection: Any, packed: bytes, replies: int = 1, *, before_reading: Callable[[], None] | None = None
    ) -> list[Reply]:
        """Send commands as `call` does, on a connection that the caller owns and without a second try.

        Arguments:
            before_reading: waits for the answer of a blocking command, so that this takes longer than the timeout.
        """
        from redis import exceptions

        try:
            return exchange(connection, packed, replies, exceptions.ResponseError, before_reading)
        except exceptions.RedisError as error:
            self.fail(error)

    def fail(self, error: Exception) -> NoReturn:
        """Raise this error of redis-py as ours."""
        raise BrokerUnavailable(f"Redis at {self.address}: {explain(error)}") from error

    def close(self) -> None:
        """Close the idle connections. A later call connects again."""
        self._drop_idle()

    def _take(self) -> tuple[Any, float]:
        while self._idle:
            try:
                connection, used_at = self._idle.pop()
            except IndexError:  # another thread took the last one
                break
            if connection.pid == os.getpid():
                return connection, used_at
            connection.disconnect()  # the parent's: redis-py then closes our copy and leaves the session alone
        return None, 0.0

    def _drop_idle(self, keep: int = 0) -> None:
        while len(self._idle) > keep:
            try:
                self._idle.popleft()[0].disconnect()
            except IndexError:
                return
