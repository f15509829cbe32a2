"""`RedisConnections` for asyncio."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from typing import Any

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders.redis.protocol import Reply, exchange_async, explain
from penstock.producers.senders.redis.sentinel import is_sentinel
from penstock.producers.senders.redis.servers import ANSWERS, TRUST_IDLE_SECONDS, Servers, new_connection


class AsyncRedisConnections:
    """Asynchronous connections; each belongs to the event loop that made it."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.url, self.timeout_seconds = url, timeout_seconds
        self._servers = Servers(url, timeout_seconds)
        self.address = self._servers.address
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[tuple[Any, float]]]
        self._loops = weakref.WeakKeyDictionary()

    async def call(self, packed: bytes, replies: int = 1) -> list[Reply]:
        """See `RedisConnections.call`."""
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
                result = await exchange_async(connection, packed, replies, exceptions.ResponseError)
            except exceptions.ConnectionError:
                if not reused:
                    raise
                await _disconnect_all(idle)
                connection = await self.connect()
                result = await exchange_async(connection, packed, replies, exceptions.ResponseError)
        except exceptions.RedisError as error:
            raise BrokerUnavailable(f"Redis at {self.address}: {explain(error)}") from error
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
        connection = new_connection(url, self.timeout_seconds, asynchronous=True, **options)
        done = False
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await connection.connect()
                if questions := self._servers.questions():
                    refused = exceptions.ResponseError
                    self._servers.check(*await exchange_async(connection, questions, ANSWERS, refused))
            done = True
        except TimeoutError as error:
            raise exceptions.TimeoutError(f"no connection within {self.timeout_seconds:g} s") from error
        except OSError as error:
            raise exceptions.ConnectionError(str(error)) from error
        finally:
            if not done:
                await connection.disconnect(nowait=True)
        return connection


async def _disconnect_all(idle: deque[tuple[Any, float]]) -> None:
    while idle:
        await idle.pop()[0].disconnect()
