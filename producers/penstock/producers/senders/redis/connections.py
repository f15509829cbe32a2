"""Connections to Redis: redis-py's, without its client and pool, whose cost per call exceeds that of an XADD.

`call` takes commands already packed (`pack`) and returns their replies. The redis library is imported with the first
connection: its import alone takes a third of a second.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.producers.senders.hosts import check_files, host_and_port, look_up
from penstock.producers.senders.redis.sentinel import Sentinels, is_sentinel

TRUST_IDLE_SECONDS = 30.0
"""An idle connection older than this is replaced: a firewall may have cut it without a word, and then a command on it
would wait for the whole timeout."""

_ANSWERS = 2

Reply = Any
"""What Redis answered: bytes, int, None, a list of these, or the ResponseError of a refused command."""


def pack(*arguments: bytes | str | int) -> bytes:
    """One command in the Redis protocol (RESP)."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def address(url: str) -> str:
    """`host:port` (or the socket's path, or the sentinels) of a Redis URL, for messages."""
    if is_sentinel(url):
        return Sentinels(url).address
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else host_and_port(url, 6379)


class _Servers:
    """Finds the server that a new connection is for, and refuses what cannot be one.

    Attributes:
        server_url: of the server that the last connection was made to: behind sentinels it changes.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.url, self.address = url, address(url)
        self.timeout_seconds = timeout_seconds
        self.server_url = url
        self._sentinels = Sentinels(url) if is_sentinel(url) else None
        self._checked = ""

    def find(self) -> str:
        """Ask the sentinels for the master, if there are any. Raises OSError."""
        if self._sentinels is not None:
            self.server_url = self._sentinels.find(self._ask)
        return self.server_url

    def questions(self) -> bytes:
        """What to ask on a new connection, in packed commands, `_ANSWERS` of them; nothing to a server asked before.

        Behind sentinels a server is always asked: the one they name may have lost its role a moment ago.
        """
        known = self._sentinels is None and self._checked == self.server_url
        return b"" if known else pack("INFO", "cluster") + pack("INFO", "replication")

    def check(self, cluster: Reply, replication: Reply) -> None:
        """Judge the answers. An account may be forbidden to ask.

        Raises:
            ConfigError: the server is a node of a Redis Cluster; OSError: it is no master.
        """
        if isinstance(cluster, bytes) and b"cluster_enabled:1" in cluster:
            raise ConfigError(
                f"Redis at {self.address} is a node of a Redis Cluster, which holds each queue on another server: "
                "use one server, or one with replicas behind Redis Sentinel (redis+sentinel://…?master=NAME)"
            )
        if self._sentinels is not None and isinstance(replication, bytes) and b"role:slave" in replication:
            raise OSError(f"{urlsplit(self.server_url).netloc.rpartition('@')[2]} is not the master any more")
        self._checked = self.server_url

    def _ask(self, url: str, command: tuple[str, ...]) -> Reply:
        from redis import exceptions

        connection = _new_connection(url, self.timeout_seconds)
        try:
            _connect(connection, self.timeout_seconds)
            [reply] = _exchange(connection, pack(*command), 1, exceptions.ResponseError)
        finally:
            connection.disconnect()
        if isinstance(reply, Exception):
            raise reply
        return reply


class RedisConnections:
    """Synchronous connections: one for each thread that is calling at the moment. Thread-safe, safe after a fork."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.url, self.timeout_seconds = url, timeout_seconds
        self._servers = _Servers(url, timeout_seconds)
        self.address = self._servers.address
        self._idle: deque[tuple[Any, float]] = deque()

    @property
    def server_url(self) -> str:
        """Of the server that the last connection was made to."""
        return self._servers.server_url

    def call(self, packed: bytes, replies: int = 1) -> list[Reply]:
        """Send commands and read as many replies.

        A connection that turns out to be closed is replaced once and everything is sent again. What the server had
        taken before the cut is then there twice, under the same job id: the claim absorbs it.

        Raises:
            BrokerUnavailable: within the timeout.
        """
        from redis import exceptions

        connection, used_at = self._take()
        reused = connection is not None and time.monotonic() - used_at < TRUST_IDLE_SECONDS
        try:
            if not reused:
                if connection is not None:
                    connection.disconnect()
                connection = self.connect()
            try:
                result = _exchange(connection, packed, replies, exceptions.ResponseError)
            except exceptions.ConnectionError:
                if not reused:
                    raise
                self._drop_idle()  # they were cut together
                connection = self.connect()
                result = _exchange(connection, packed, replies, exceptions.ResponseError)
        except exceptions.RedisError as error:
            self.fail(error)
        self._idle.append((connection, time.monotonic()))
        return result

    def execute(self, *commands: bytes) -> list[Reply]:
        """As `call`, for commands that Redis has no reason to refuse. Returns a reply for each.

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
            connection = _new_connection(self._servers.find(), self.timeout_seconds, **options)
            _connect(connection, self.timeout_seconds)
            if questions := self._servers.questions():
                self._servers.check(*_exchange(connection, questions, _ANSWERS, exceptions.ResponseError))
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
        """The same on a connection that the caller owns, without a second try.

        Arguments:
            before_reading: waits for the answer of a blocking command, so that this takes longer than the timeout.
        """
        from redis import exceptions

        try:
            return _exchange(connection, packed, replies, exceptions.ResponseError, before_reading)
        except exceptions.RedisError as error:
            self.fail(error)

    def fail(self, error: Exception) -> NoReturn:
        """Raise this error of redis-py as ours."""
        raise BrokerUnavailable(f"Redis at {self.address}: {error}") from error

    def close(self) -> None:
        """Close what is idle. A call afterwards connects anew."""
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

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                self._idle.pop()[0].disconnect()
            except IndexError:
                return


class AsyncRedisConnections:
    """The same for asyncio; connections belong to the event loop that made them."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.url, self.timeout_seconds = url, timeout_seconds
        self._servers = _Servers(url, timeout_seconds)
        self.address = self._servers.address
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[tuple[Any, float]]]
        self._loops = weakref.WeakKeyDictionary()

    async def call(self, packed: bytes, replies: int = 1) -> list[Reply]:
        """As `RedisConnections.call`."""
        from redis import exceptions

        idle = self._loops.setdefault(asyncio.get_running_loop(), deque())
        connection, used_at = idle.pop() if idle else (None, 0.0)
        reused = connection is not None and time.monotonic() - used_at < TRUST_IDLE_SECONDS
        try:
            if not reused:
                if connection is not None:
                    await connection.disconnect()
                connection = await self.connect()
            try:
                result = await _exchange_async(connection, packed, replies, exceptions.ResponseError)
            except exceptions.ConnectionError:
                if not reused:
                    raise
                await _disconnect_all(idle)
                connection = await self.connect()
                result = await _exchange_async(connection, packed, replies, exceptions.ResponseError)
        except exceptions.RedisError as error:
            raise BrokerUnavailable(f"Redis at {self.address}: {error}") from error
        idle.append((connection, time.monotonic()))
        return result

    async def close(self) -> None:
        """Close the idle connections of the running loop; those of other loops are theirs to close."""
        if idle := self._loops.pop(asyncio.get_running_loop(), None):
            await _disconnect_all(idle)

    async def connect(self, **options: Any) -> Any:
        """A new, connected `redis.asyncio.connection.Connection` that the caller owns. Raises redis-py's errors."""
        from redis import exceptions

        url = self.url
        if is_sentinel(url):
            try:
                url = await asyncio.to_thread(self._servers.find)
            except OSError as error:
                raise exceptions.ConnectionError(str(error)) from error
        connection = _new_connection(url, self.timeout_seconds, asynchronous=True, **options)
        done = False
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await connection.connect()
                if questions := self._servers.questions():
                    refused = exceptions.ResponseError
                    self._servers.check(*await _exchange_async(connection, questions, _ANSWERS, refused))
            done = True
        except TimeoutError as error:
            raise exceptions.TimeoutError(f"no connection within {self.timeout_seconds:g} s") from error
        except OSError as error:
            raise exceptions.ConnectionError(str(error)) from error
        finally:
            if not done:
                await connection.disconnect(nowait=True)
        return connection


def _connect(connection: Any, timeout_seconds: float) -> None:
    """Connect in bounded time. Raises what redis-py raises, and OSError."""
    if host := getattr(connection, "host", None):
        connection.socket_connect_timeout = timeout_seconds / look_up(host, connection.port, timeout_seconds)
    connection.connect()


def _new_connection(url: str, timeout_seconds: float, asynchronous: bool = False, **options: Any) -> Any:
    if asynchronous:
        from redis.asyncio.connection import Connection, parse_url
    else:
        from redis.connection import Connection, parse_url  # type: ignore[assignment]
    try:
        given: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise ConfigError(f"broker URL of Redis at {address(url)}: {error}") from error
    tls_files = {key: given[f"ssl_{key}"] for key in ("ca_certs", "certfile", "keyfile") if f"ssl_{key}" in given}
    check_files(f"broker URL of Redis at {address(url)}", tls_files)
    connection_class = given.pop("connection_class", Connection)
    ours: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "protocol": 2,  # RESP3 answers XREADGROUP in another shape
    }
    if urlsplit(url).scheme != "unix":
        ours["socket_keepalive"] = True
    return connection_class(**(ours | given | options))


def _exchange(
    connection: Any,
    packed: bytes,
    replies: int,
    refused: type[Exception],
    before_reading: Callable[[], None] | None = None,
) -> list[Reply]:
    result: list[Reply] = []
    try:
        connection.send_packed_command((packed,), check_health=False)
        if before_reading is not None:
            before_reading()
        read = connection.read_response
        for _ in range(replies):
            try:
                result.append(read())
            except refused as error:
                _not_of_a_replica(error)
                result.append(error)
    except BaseException:
        connection.disconnect()
        raise
    return result


def _not_of_a_replica(error: Exception) -> None:
    """A master that was demoted refuses writes: its connections are worth no more than closed ones."""
    if "READONLY" in str(error):
        from redis import exceptions

        raise exceptions.ConnectionError(f"refused: {error}") from error


async def _exchange_async(connection: Any, packed: bytes, replies: int, refused: type[Exception]) -> list[Reply]:
    result: list[Reply] = []
    try:
        await connection.send_packed_command((packed,), check_health=False)
        read = connection.read_response
        for _ in range(replies):
            try:
                result.append(await read())
            except refused as error:
                _not_of_a_replica(error)
                result.append(error)
    except BaseException:  # a cancelled task too: the replies still under way belong to nobody
        await connection.disconnect(nowait=True)
        raise
    return result


async def _disconnect_all(idle: deque[tuple[Any, float]]) -> None:
    while idle:
        await idle.pop()[0].disconnect()
