"""Waiters: a thread or a coroutine that waits for a change of one job."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

from penstock.config.errors import WatchClosed


class BaseWaiter:
    """Waiter for changes of one job.

    Attributes:
        live: pushed changes reach it; until then, and again after a connection was lost, it must look by itself.
        closed: its producer was closed, or no one waits any more.
    """

    def __init__(self, job_id: str, event: Any) -> None:
        self.job_id = job_id
        self.live = self.closed = False
        self._event = event

    def notify(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Check that the wait is not over.

        Raises:
            WatchClosed: the producer was closed.
        """
        if self.closed:
            raise WatchClosed(f"the producer was closed while job {self.job_id} was watched; the job goes on")

    def _reset(self) -> None:
        self._event.clear()
        self.check()


class Waiter(BaseWaiter):
    """Waiter of a thread."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, threading.Event())

    def wait(self, seconds: float) -> None:
        """Wait until the job may have changed, or for so many seconds.

        Raises:
            WatchClosed: the producer was closed.
        """
        self._event.wait(seconds)
        self._reset()


class AsyncWaiter(BaseWaiter):
    """Waiter of a coroutine."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, asyncio.Event())

    async def wait(self, seconds: float) -> None:
        """See `Waiter.wait`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._reset()


AnyWaiter = Waiter | AsyncWaiter
