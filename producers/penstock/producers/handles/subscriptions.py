"""Subscriptions to changes of watched jobs, in place of reading the ledger again and again. Redis only.

Without a Redis that publishes changes, waiters read the ledger by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref

from penstock.config.supervision import start_thread
from penstock.producers.handles.fork_safety import register_after_fork, retain
from penstock.producers.handles.redis_listener import RedisListener
from penstock.producers.handles.waiters import AsyncWaiter, Waiter


class Subscriptions:
    """Subscriptions of any number of threads. One thread of its own listens for all of them, while there are any.

    Arguments:
        url: of Redis; None: no changes are pushed, and waiters look by themselves.
    """

    def __init__(self, url: str | None, *, prefix: str, timeout_seconds: float) -> None:
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds
        self._reset()
        register_after_fork(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiters: set[Waiter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: RedisListener | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def after_fork(self) -> None:
        retain(self._loop, self._listener, self._thread)
        self._reset()

    def subscribe(self, job_id: str) -> Waiter:
        """Watch a job; `unsubscribe` with the same waiter."""
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

    def unsubscribe(self, waiter: Waiter) -> None:
        with self._lock:
            self._waiters.discard(waiter)
            if self._loop is not None and self._listener is not None:
                self._loop.call_soon_threadsafe(self._listener.remove, waiter)

    def close(self) -> None:
        """End all waits with WatchClosed. A later subscription starts again."""
        with self._lock:
            waiters, loop, listener, thread = self._waiters, self._loop, self._listener, self._thread
            stopping = self._stopping
            self._waiters, self._loop, self._listener, self._thread = set(), None, None, None
        for waiter in waiters:
            waiter.closed = True
            waiter.notify()
        if loop is not None and listener is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(listener.close(), loop).result()
            stopping.set()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _start(self, url: str) -> None:
        loop = asyncio.new_event_loop()
        listener = RedisListener(url, self._prefix, self._timeout_seconds, lambda: self._on_idle(loop))
        stopping = threading.Event()
        # Not vital: where no changes are pushed, waiters look by themselves.
        thread = start_thread("penstock-subscriptions", lambda: self._run_loop(loop, stopping), stopping, vital=False)
        self._loop, self._listener, self._thread, self._stopping = loop, listener, thread, stopping

    def _run_loop(self, loop: asyncio.AbstractEventLoop, stopping: threading.Event) -> None:
        """Run the loop until it is to stop. An exception out of `run_forever` takes nothing from it; it can go on."""
        try:
            if not stopping.is_set():
                loop.run_forever()
        finally:
            if stopping.is_set():
                loop.close()

    def _on_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop the loop, on the loop, unless a waiter has just subscribed and is on its way to the listener."""
        with self._lock:
            if self._loop is loop and not self._waiters:
                self._loop = self._listener = self._thread = None
                self._stopping.set()
                loop.stop()


class AsyncSubscriptions:
    """Subscriptions of coroutines in any number of event loops, without a thread."""

    def __init__(self, url: str | None, *, prefix: str, timeout_seconds: float) -> None:
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopSubscriptions] = (
            weakref.WeakKeyDictionary()
        )

    def subscribe(self, job_id: str) -> AsyncWaiter:
        loop = asyncio.get_running_loop()
        subscriptions = self._loops.get(loop)
        if subscriptions is None:
            listener = None if self._url is None else RedisListener(self._url, self._prefix, self._timeout_seconds)
            subscriptions = self._loops[loop] = _LoopSubscriptions(listener)
        waiter = AsyncWaiter(job_id)
        subscriptions.add(waiter)
        return waiter

    def unsubscribe(self, waiter: AsyncWaiter) -> None:
        """End the subscription; a look that its thread has not started is dropped. The loop may be closed by now."""
        waiter.closed = True
        with contextlib.suppress(RuntimeError):
            if subscriptions := self._loops.get(asyncio.get_running_loop()):
                subscriptions.remove(waiter)

    async def close(self) -> None:
        """End all waits of the running loop with WatchClosed."""
        if subscriptions := self._loops.pop(asyncio.get_running_loop(), None):
            await subscriptions.close()


class _LoopSubscriptions:
    """Subscriptions of one event loop."""

    def __init__(self, listener: RedisListener | None) -> None:
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
            waiter.notify()
        self._waiters.clear()
        if self._listener is not None:
            await self._listener.close()
