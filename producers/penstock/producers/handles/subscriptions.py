"""Hearing that a watched job has changed, in place of asking the ledger again and again. Where the broker is Redis.

Who watches a job subscribes to its channel and enters it, with an expiry, into a sorted set. A worker that has written
to the ledger publishes what it finds in that set; while nobody watches, that costs one look. A push only says "look":
the truth is read from the ledger, so one that is lost (a connection, a restart of Redis) costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from penstock.config.errors import WatchClosed
from penstock.producers.handles.fork_safety import keep, tell_after_fork
from penstock.producers.senders.redis.connections import AsyncRedisConnections, pack

log = logging.getLogger("penstock.producers")

EXPIRY_SECONDS = 30
"""How long a worker sees that a job is watched, without a renewal."""
_RENEW_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_CLOSE_SECONDS = 1.0
"""For the farewell to a Redis that may not answer."""

# By the clock of Redis, as those of producers may differ.
_ENTER = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
return redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
_AT_ONCE = 1000
"""Jobs in one call of a script."""


def watched_key(prefix: str) -> str:
    """The sorted set of watched jobs, by the time at which they are forgotten."""
    return f"{prefix}:watched"


def channel_start(prefix: str) -> str:
    """What the name of a job's channel begins with; its id follows."""
    return f"{prefix}:job:"


class _Waiter:
    """Somebody's wish to hear of one job.

    Attributes:
        live: pushes reach it; until then, and again after a connection was lost, it must look by itself.
        closed: its producer was closed, or nobody waits any more.
    """

    def __init__(self, job_id: str, event: Any) -> None:
        self.job_id = job_id
        self.live = self.closed = False
        self._event = event

    def tell(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises WatchClosed."""
        if self.closed:
            raise WatchClosed(f"the producer was closed while job {self.job_id} was watched; the job goes on")

    def _told(self) -> None:
        self._event.clear()
        self.check()


class Waiter(_Waiter):
    """For a thread."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, threading.Event())

    def wait(self, seconds: float) -> None:
        """Until there may be news, or for so long. Raises WatchClosed."""
        self._event.wait(seconds)
        self._told()


class AsyncWaiter(_Waiter):
    """For a coroutine."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, asyncio.Event())

    async def wait(self, seconds: float) -> None:
        """See `Waiter.wait`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._told()


AnyWaiter = Waiter | AsyncWaiter


class _Listener:
    """Hears for all waiters of one event loop, over one connection. That is there only while somebody waits.

    Arguments:
        idle: called when it has nothing to do any more.
    """

    def __init__(
        self, url: str, prefix: str, timeout_seconds: float, idle: Callable[[], object] = lambda: None
    ) -> None:
        self._connections = AsyncRedisConnections(url, timeout_seconds=timeout_seconds)
        self._key, self._channels = watched_key(prefix), channel_start(prefix)
        self._idle = idle
        self._waiters: dict[str, set[_Waiter]] = {}
        self._live: set[str] = set()
        self._subscribed: list[str] = []  # and not entered yet
        self._outgoing: list[bytes] = []
        self._work = asyncio.Event()
        self._outcome = asyncio.Event()
        self._connected = self._heard = False
        self._pause = _FIRST_PAUSE
        self._task: asyncio.Task[None] | None = None

    def add(self, waiter: _Waiter) -> None:
        """It is told once pushes reach it, so that it looks after that, and then with each push."""
        waiters = self._waiters.setdefault(waiter.job_id, set())
        waiters.add(waiter)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())
        elif waiter.job_id in self._live:
            waiter.live = True
            waiter.tell()
        elif len(waiters) == 1:
            self._command("SUBSCRIBE", self._channels + waiter.job_id)

    def remove(self, waiter: _Waiter) -> None:
        waiters = self._waiters.get(waiter.job_id, set())
        waiters.discard(waiter)
        if not waiters and self._waiters.pop(waiter.job_id, None) is not None:
            # What it entered stays until it expires: another process may watch the same job.
            self._live.discard(waiter.job_id)
            self._command("UNSUBSCRIBE", self._channels + waiter.job_id)

    async def close(self) -> None:
        """End for good, and tell the waiters."""
        for waiter in [waiter for waiters in self._waiters.values() for waiter in waiters]:
            waiter.closed = True
            waiter.tell()
        self._waiters.clear()
        self._outcome.set()
        if (task := self._task) is not None:
            await asyncio.wait({task}, timeout=_CLOSE_SECONDS)
            await _stop(task)

    def _command(self, *arguments: str) -> None:
        if self._connected:
            self._outgoing.append(pack(*arguments))
            self._work.set()

    async def _listen(self) -> None:
        try:
            while self._waiters:
                try:
                    await self._session()
                except Exception as error:
                    level = logging.WARNING if self._pause == _FIRST_PAUSE else logging.DEBUG
                    log.log(level, "watched jobs are looked up again and again: %s", error)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._pause):
                            await self._outcome.wait()
                    self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        finally:
            self._task = None  # first: who joins from here on needs another one
            self._work, self._outcome = asyncio.Event(), asyncio.Event()  # used ones hold on to their loop
            await self._connections.close()
            self._idle()

    async def _session(self) -> None:
        """One connection, until nobody waits any more. Raises what made it end sooner."""
        connection = await self._connections.connect(socket_timeout=None)
        parts: list[asyncio.Task[object]] = []
        self._connected, self._heard = True, True
        self._outgoing.clear()
        self._subscribed.clear()
        try:
            if self._waiters:
                self._command("SUBSCRIBE", *(self._channels + job_id for job_id in self._waiters))
            works: tuple[Coroutine[Any, Any, object], ...] = (
                self._read(connection),
                self._write(connection),
                self._renew(),
                self._outcome.wait(),
            )
            parts = [asyncio.create_task(work) for work in works]
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
            self._heard = True
            if not isinstance(reply, list) or len(reply) < 3:
                continue  # the answer to PING
            job_id = reply[1].decode()[len(self._channels) :]
            if reply[0] == b"message":
                for waiter in self._waiters.get(job_id, ()):
                    waiter.tell()
            elif reply[0] == b"subscribe":
                self._subscribed.append(job_id)
                self._work.set()

    async def _write(self, connection: Any) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self._outgoing:
                outgoing, self._outgoing = b"".join(self._outgoing), []
                await connection.send_packed_command((outgoing,), check_health=False)
            if self._subscribed:
                entered, self._subscribed = self._subscribed, []
                await self._enter(entered)
                self._pause = _FIRST_PAUSE
                for job_id in entered:
                    if waiters := self._waiters.get(job_id):
                        self._live.add(job_id)
                        for waiter in waiters:
                            waiter.live = True
                            waiter.tell()

    async def _renew(self) -> None:
        """Keep what is entered from expiring, and find a connection that was cut without a word."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            if not self._waiters:
                return
            if not self._heard:
                raise ConnectionError(f"Redis at {self._connections.address} has fallen silent")
            self._heard = False
            self._command("PING")
            await self._enter(sorted(self._live))

    async def _enter(self, job_ids: list[str]) -> None:
        for start in range(0, len(job_ids), _AT_ONCE):
            part = job_ids[start : start + _AT_ONCE]
            [reply] = await self._connections.call(pack("EVAL", _ENTER, 1, self._key, EXPIRY_SECONDS, *part))
            if isinstance(reply, Exception):
                raise reply


class Watching:
    """Waiters in any number of threads. One thread of its own hears for all of them, while there are any.

    Arguments:
        url: of Redis; None: there are no pushes, and waiters look by themselves.
    """

    def __init__(self, url: str | None, *, prefix: str, timeout_seconds: float) -> None:
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds
        self._start_anew()
        tell_after_fork(self)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._waiters: set[Waiter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        keep(self._loop, self._listener, self._thread)
        self._start_anew()

    def join(self, job_id: str) -> Waiter:
        """Watch a job; `leave` with the same waiter."""
        waiter = Waiter(job_id)
        with self._lock:
            self._waiters.add(waiter)
            if self._url is not None:
                if self._loop is None:
                    self._start(self._url)
                assert self._loop is not None
                assert self._listener is not None
                self._loop.call_soon_threadsafe(self._listener.add, waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        with self._lock:
            self._waiters.discard(waiter)
            if self._loop is not None and self._listener is not None:
                self._loop.call_soon_threadsafe(self._listener.remove, waiter)

    def close(self) -> None:
        """End all waits with WatchClosed. It starts anew if it is used again."""
        with self._lock:
            waiters, loop, listener, thread = self._waiters, self._loop, self._listener, self._thread
            self._waiters, self._loop, self._listener, self._thread = set(), None, None, None
        for waiter in waiters:
            waiter.closed = True
            waiter.tell()
        if loop is not None and listener is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(listener.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _start(self, url: str) -> None:
        loop = asyncio.new_event_loop()
        listener = _Listener(url, self._prefix, self._timeout_seconds, lambda: self._retire(loop))
        thread = threading.Thread(target=_run, args=(loop,), name="penstock-watching", daemon=True)
        thread.start()
        self._loop, self._listener, self._thread = loop, listener, thread

    def _retire(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop. A waiter that has just joined keeps it; it is on its way to the listener."""
        with self._lock:
            if self._loop is loop and not self._waiters:
                self._loop = self._listener = self._thread = None
                loop.stop()


class AsyncWatching:
    """The same for coroutines in any number of event loops, without a thread."""

    def __init__(self, url: str | None, *, prefix: str, timeout_seconds: float) -> None:
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()

    def join(self, job_id: str) -> AsyncWaiter:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            listener = None if self._url is None else _Listener(self._url, self._prefix, self._timeout_seconds)
            here = self._loops[loop] = _Loop(listener)
        waiter = AsyncWaiter(job_id)
        here.add(waiter)
        return waiter

    def leave(self, waiter: AsyncWaiter) -> None:
        """A look that its thread has not begun comes to nothing. Where the loop was closed meanwhile that is all."""
        waiter.closed = True
        with contextlib.suppress(RuntimeError):
            if here := self._loops.get(asyncio.get_running_loop()):
                here.remove(waiter)

    async def close(self) -> None:
        """End all waits of the running loop with WatchClosed."""
        if here := self._loops.pop(asyncio.get_running_loop(), None):
            await here.close()


class _Loop:
    """What one event loop waits for."""

    def __init__(self, listener: _Listener | None) -> None:
        self._listener = listener
        self._waiters: set[AsyncWaiter] = set()

    def add(self, waiter: AsyncWaiter) -> None:
        self._waiters.add(waiter)
        if self._listener is not None:
            self._listener.add(waiter)

    def remove(self, waiter: AsyncWaiter) -> None:
        self._waiters.discard(waiter)
        if self._listener is not None:
            self._listener.remove(waiter)

    async def close(self) -> None:
        for waiter in self._waiters:
            waiter.closed = True
            waiter.tell()
        self._waiters.clear()
        if self._listener is not None:
            await self._listener.close()


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


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
