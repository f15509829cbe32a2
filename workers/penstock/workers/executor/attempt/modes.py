"""Handler modes: coroutines on the worker's loop, plain functions in threads, or in processes: one that is kept, or one
for each attempt."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.workers.executor.attempt.attempt import Attempt, HandlerMode
from penstock.workers.executor.attempt.child.parent import Children
from penstock.workers.executor.attempt.errors import TimedOut
from penstock.workers.executor.attempt.once import Effects
from penstock.workers.executor.attempt.session import Sessions
from penstock.workers.executor.runtime.handler_threads import HandlerThreads
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.django_project import CoroutineThreads, is_set_up
from penstock.workers.handlers.registry import Handler, Mode

STOPPING_SECONDS = 5.0
"""How long a thread that was asked to stop may take before the attempt ends without it."""


def make_modes(
    sessions: Sessions, effects: Effects, threads: HandlerThreads, children: Children
) -> dict[Mode, HandlerMode]:
    """The modes by the names that handlers have for them, without that of the pool."""
    return {
        "async": AsyncMode(sessions, effects),
        "thread": ThreadMode(sessions, effects, threads),
        "child": ProcessMode(effects, children.run),
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
        handler, kind = attempt.handler, attempt.handler.kind
        work = handler.function(attempt.claim.message.job, **arguments)
        if self._orm_threads is not None:
            work = self._orm_threads.run(work)
        if kind.soft_timeout is not None:
            work = _in_time(work, kind.soft_timeout, _soft_limit_error(handler, kind.soft_timeout))
        return await (work if kind.timeout is None else _in_time(work, kind.timeout, _timeout_error(kind.timeout)))

    async def commit(self, session: Any, outcome: AttemptOutcome) -> None:
        await self._sessions.commit_async(session, outcome)

    async def close(self, session: Any) -> None:
        await session.close()


class ThreadMode:
    """Runs plain functions in threads, which can be asked to stop and not be made to."""

    in_process = True

    def __init__(self, sessions: Sessions, effects: Effects, threads: HandlerThreads) -> None:
        self.open_session: Callable[[], Any] | None = sessions.open
        self.open_once: Callable[[Context, str], Any] = effects.open
        self._sessions, self._threads = sessions, threads

    async def call(self, attempt: Attempt, arguments: dict[str, Any]) -> Any:
        handler, message = attempt.handler, attempt.claim.message
        work = partial(handler.function, message.job, **arguments)
        loop, soft = asyncio.get_running_loop(), message.soft_timeout
        running = _watch(attempt, self._threads.start(work), message.timeout)
        if soft is None:
            return await running
        notice = loop.call_later(soft.total_seconds(), attempt.context.cancel, _soft_limit_error(handler, soft))
        try:
            return await running
        finally:
            notice.cancel()

    async def commit(self, session: Any, outcome: AttemptOutcome) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._sessions.commit, session, outcome)

    async def close(self, session: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, session.close)


class ProcessMode:
    """Runs plain functions in child processes, which can be interrupted and killed.

    A child opens its resources itself and has no session. `ctx.once` is answered at this end of its pipe.

    Arguments:
        run: runs the handler of an attempt, in a process of its own or in one of the pool.
    """

    in_process = False
    open_session: Callable[[], Any] | None = None

    def __init__(self, effects: Effects, run: Callable[[Attempt], Awaitable[Any]]) -> None:
        self.open_once: Callable[[Context, str], Any] = effects.open_async
        self._run = run

    async def call(self, attempt: Attempt, arguments: dict[str, Any]) -> Any:
        return await self._run(attempt)

    async def commit(self, session: Any, outcome: AttemptOutcome) -> None:
        raise RuntimeError("a handler in a process has no session to commit")

    async def close(self, session: Any) -> None: ...


def _timeout_error(limit: timedelta) -> Exception:
    return TimedOut(f"took longer than its timeout of {limit.total_seconds():g} s")


def _soft_limit_error(handler: Handler, limit: timedelta) -> Exception:
    return handler.soft_error(f"reached its soft_timeout of {limit}")


async def _in_time(work: Awaitable[Any], timeout: timedelta, late: Exception) -> Any:
    limit = asyncio.timeout(timeout.total_seconds())
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise late from error
        raise


async def _watch(attempt: Attempt, future: asyncio.Future[Any], timeout: timedelta | None) -> Any:
    """Wait for work that cannot be interrupted from here; its context says when it should stop."""
    try:
        await asyncio.wait({future}, timeout=None if timeout is None else timeout.total_seconds())
        if timeout is None or future.done():
            return future.result()
        attempt.context.cancel()
        await asyncio.wait({future}, timeout=STOPPING_SECONDS)
        raise _timeout_error(timeout)
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
