"""Handler modes: coroutines on the worker's loop, plain functions in threads, isolated functions in child processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor as ThreadPool
from datetime import timedelta
from functools import partial
from typing import Any

from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.workers.executor.attempt.attempt import Attempt, HandlerMode
from penstock.workers.executor.attempt.child.parent import Children
from penstock.workers.executor.attempt.errors import TimedOut
from penstock.workers.executor.attempt.once import Effects
from penstock.workers.executor.attempt.session import Sessions
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.django_project import CoroutineThreads, is_set_up
from penstock.workers.handlers.registry import Mode

STOPPING_SECONDS = 5.0
"""How long a thread that was asked to stop may take before the attempt ends without it."""


def make_modes(
    sessions: Sessions, effects: Effects, threads: ThreadPool, children: Children
) -> dict[Mode, HandlerMode]:
    """The modes by the names that handlers have for them."""
    return {
        "async": AsyncMode(sessions, effects),
        "thread": ThreadMode(sessions, effects, threads),
        "child": ChildMode(effects, children),
    }


class AsyncMode:
    """Runs coroutines on the worker's loop."""

    in_process = True

    def __init__(self, sessions: Sessions, effects: Effects) -> None:
        self.open_session: Callable[[], Any] | None = sessions.open_async
        self.open_once: Callable[[Context, str], Any] = effects.open_async
        self._sessions = sessions
        self._orm_threads = CoroutineThreads() if is_set_up() else None

    async def call(self, attempt: Attempt, arguments: dict[str, Any]) -> Any:
        handler, timeout = attempt.handler, attempt.handler.kind.timeout
        work = handler.function(attempt.claim.message.job, **arguments)
        if self._orm_threads is not None:
            work = self._orm_threads.run(work)
        return await (work if timeout is None else _in_time(work, timeout))

    async def commit(self, session: Any, outcome: AttemptOutcome) -> None:
        await self._sessions.commit_async(session, outcome)

    async def close(self, session: Any) -> None:
        await session.close()


class ThreadMode:
    """Runs plain functions in threads, which can be asked to stop and not be made to."""

    in_process = True

    def __init__(self, sessions: Sessions, effects: Effects, threads: ThreadPool) -> None:
        self.open_session: Callable[[], Any] | None = sessions.open
        self.open_once: Callable[[Context, str], Any] = effects.open
        self._sessions, self._threads = sessions, threads

    async def call(self, attempt: Attempt, arguments: dict[str, Any]) -> Any:
        handler, job = attempt.handler, attempt.claim.message.job
        work = partial(handler.function, job, **arguments)
        running = asyncio.get_running_loop().run_in_executor
        return await _watch(attempt, running(self._threads, work), handler.kind.timeout)

    async def commit(self, session: Any, outcome: AttemptOutcome) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._sessions.commit, session, outcome)

    async def close(self, session: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, session.close)


class ChildMode:
    """Runs isolated functions in child processes, which keep their own time and can be killed.

    A child opens its resources itself and has no session. `ctx.once` is answered at this end of its pipe.
    """

    in_process = False
    open_session: Callable[[], Any] | None = None

    def __init__(self, effects: Effects, children: Children) -> None:
        self.open_once: Callable[[Context, str], Any] = effects.open_async
        self._children = children

    async def call(self, attempt: Attempt, arguments: dict[str, Any]) -> Any:
        return await self._children.run(attempt)

    async def commit(self, session: Any, outcome: AttemptOutcome) -> None:
        raise RuntimeError("an isolated handler has no session to commit")

    async def close(self, session: Any) -> None: ...


async def _in_time(work: Awaitable[Any], timeout: timedelta) -> Any:
    limit = asyncio.timeout(timeout.total_seconds())
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise TimedOut(f"took longer than its timeout of {timeout.total_seconds():g} s") from error
        raise


async def _watch(attempt: Attempt, future: asyncio.Future[Any], timeout: timedelta | None) -> Any:
    """Wait for work that cannot be interrupted from here; its context says when it should stop."""
    try:
        seconds = None if timeout is None else timeout.total_seconds()
        await asyncio.wait({future}, timeout=seconds)
        if future.done():
            return future.result()
        attempt.context.cancel()
        await asyncio.wait({future}, timeout=STOPPING_SECONDS)
        raise TimedOut(f"took longer than its timeout of {seconds:g} s")
    except asyncio.CancelledError:
        attempt.context.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({future}, timeout=STOPPING_SECONDS)
        if attempt.stop is not None and future.done() and not future.cancelled() and future.exception() is None:
            return future.result()  # it came to its end in time after all
        raise
    finally:
        if not future.done():
            future.add_done_callback(_forget)
        # It holds its error, whose traceback holds this frame: garbage collection alone would end them, and is rare.
        del future


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # retrieved, so that asyncio does not report it as lost
