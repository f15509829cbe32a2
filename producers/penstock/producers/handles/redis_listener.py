"""Redis subscriptions of watched jobs: the protocol between those who watch and the workers that publish changes.

A process that watches a job subscribes to its channel and adds it, with an expiry, to a sorted set. A worker that has
written to the ledger publishes the jobs that it finds in that set; while no one watches, that costs one query. The
message only says "look": the truth is read from the ledger, so a message that is lost (with a connection, or when Redis
restarts) costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from penstock.config.errors import PenstockError
from penstock.config.supervision import keep_running
from penstock.producers.handles.waiters import BaseWaiter
from penstock.producers.senders.redis.async_connections import AsyncRedisConnections
from penstock.producers.senders.redis.protocol import pack

log = logging.getLogger("penstock.producers")

EXPIRY_SECONDS = 30
"""Time for which a worker sees that a job is watched, without a renewal."""
_RENEW_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_CLOSE_SECONDS = 1.0
"""Limit for unsubscribing from a Redis that may not answer."""

# By the clock of Redis, as those of producers may differ.
_ADD_WATCHED = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
return redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
_BATCH = 1000
"""Jobs in one call of a script."""


def watched_key(prefix: str) -> str:
    """Key of the sorted set of watched jobs, scored by the time at which they expire."""
    return f"{prefix}:watched"


def channel_start(prefix: str) -> str:
    """Prefix of the names of channels; the id of a job follows."""
    return f"{prefix}:job:"


class RedisListener:
    """Subscriptions of all waiters of one event loop, over one connection, which is open only while there are any.

    Arguments:
        on_idle: called when no waiter is left.
    """

    def __init__(
        self, url: str, prefix: str, timeout_seconds: float, on_idle: Callable[[], object] = lambda: None
    ) -> None:
        self._connections = AsyncRedisConnections(url, timeout_seconds=timeout_seconds)
        self._key, self._channels = watched_key(prefix), channel_start(prefix)
        self._on_idle = on_idle
        self._waiters: dict[str, set[BaseWaiter]] = {}
        self._live: set[str] = set()
        self._subscribed: list[str] = []  # and not in the sorted set yet
        self._outgoing: list[bytes] = []
        self._wakeup = asyncio.Event()
        self._closing = asyncio.Event()
        self._connected = self._received = False
        self._pause = _FIRST_PAUSE
        self._task: asyncio.Task[None] | None = None

    def add(self, waiter: BaseWaiter) -> None:
        """Notify the waiter once pushed changes reach it, so that it looks after that, and then with each change."""
        waiters = self._waiters.setdefault(waiter.job_id, set())
        waiters.add(waiter)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())
        elif waiter.job_id in self._live:
            waiter.live = True
            waiter.notify()
        elif len(waiters) == 1:
            self._command("SUBSCRIBE", self._channels + waiter.job_id)

    def remove(self, waiter: BaseWaiter) -> None:
        waiters = self._waiters.get(waiter.job_id, set())
        waiters.discard(waiter)
        if not waiters and self._waiters.pop(waiter.job_id, None) is not None:
            # The job stays in the sorted set until it expires: another process may watch it too.
            self._live.discard(waiter.job_id)
            self._command("UNSUBSCRIBE", self._channels + waiter.job_id)

    async def close(self) -> None:
        """End for good, and notify the waiters."""
        for waiter in [waiter for waiters in self._waiters.values() for waiter in waiters]:
            waiter.closed = True
            waiter.notify()
        self._waiters.clear()
        self._closing.set()
        if (task := self._task) is not None:
            await asyncio.wait({task}, timeout=_CLOSE_SECONDS)
            await _stop(task)

    def _command(self, *arguments: str) -> None:
        if self._connected:
            self._outgoing.append(pack(*arguments))
            self._wakeup.set()

    async def _listen(self) -> None:
        try:
            # Not vital: where no changes are pushed, waiters look by themselves.
            await keep_running("subscriptions", self._run, vital=False, finished=lambda: not self._waiters)
        finally:
            self._task = None  # first: a waiter that is added from here on needs another one
            self._wakeup, self._closing = asyncio.Event(), asyncio.Event()  # used events keep their loop
            await self._connections.close()
            self._on_idle()

    async def _run(self) -> None:
        """Listen, over any number of lost connections, until no one waits any more."""
        from redis.exceptions import RedisError

        while self._waiters:
            try:
                await self._session()
            except (OSError, EOFError, PenstockError, RedisError) as error:
                level = logging.WARNING if self._pause == _FIRST_PAUSE else logging.DEBUG
                log.log(level, "watched jobs are looked up again and again: %s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause):
                        await self._closing.wait()
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _session(self) -> None:
        """Use one connection until no one waits any more. Raises what made it end sooner."""
        connection = await self._connections.connect(socket_timeout=None)
        parts: list[asyncio.Task[object]] = []
        self._connected, self._received = True, True
        self._outgoing.clear()
        self._subscribed.clear()
        try:
            if self._waiters:
                self._command("SUBSCRIBE", *(self._channels + job_id for job_id in self._waiters))
            work: tuple[Coroutine[Any, Any, object], ...] = (
                self._read(connection),
                self._write(connection),
                self._renew(),
                self._closing.wait(),
            )
            parts = [asyncio.create_task(part) for part in work]
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            self._connected = False
            self._live.clear()
            for waiters in self._waiters.values():
                for waiter in waiters:
                    waiter.live = False
            await _stop(*parts)
            await connection.disconnect(nowait=True)

    async def _read(self, connection: Any) -> None:
        while True:
            reply = await connection.read_response()
            self._received = True
            if not isinstance(reply, list) or len(reply) < 3:
                continue  # the answer to PING
            job_id = reply[1].decode()[len(self._channels) :]
            if reply[0] == b"message":
                for waiter in self._waiters.get(job_id, ()):
                    waiter.notify()
            elif reply[0] == b"subscribe":
                self._subscribed.append(job_id)
                self._wakeup.set()

    async def _write(self, connection: Any) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            if self._outgoing:
                outgoing, self._outgoing = b"".join(self._outgoing), []
                await connection.send_packed_command((outgoing,), check_health=False)
            if self._subscribed:
                job_ids, self._subscribed = self._subscribed, []
                await self._add_watched(job_ids)
                self._pause = _FIRST_PAUSE
                for job_id in job_ids:
                    if waiters := self._waiters.get(job_id):
                        self._live.add(job_id)
                        for waiter in waiters:
                            waiter.live = True
                            waiter.notify()

    async def _renew(self) -> None:
        """Keep watched jobs from expiring, and find a connection that was cut without notice."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            if not self._waiters:
                return
            if not self._received:
                raise ConnectionError(f"Redis at {self._connections.address} has fallen silent")
            self._received = False
            self._command("PING")
            await self._add_watched(sorted(self._live))

    async def _add_watched(self, job_ids: list[str]) -> None:
        for start in range(0, len(job_ids), _BATCH):
            batch = job_ids[start : start + _BATCH]
            [reply] = await self._connections.call(pack("EVAL", _ADD_WATCHED, 1, self._key, EXPIRY_SECONDS, *batch))
            if isinstance(reply, Exception):
                raise reply


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they end: `asyncio.wait_for`, which redis-py uses, swallows one before Python 3.12."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not report it as lost
