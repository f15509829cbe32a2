"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from penstock.config.supervision import faults, start_thread
from penstock.workers.executor.runtime.handler_threads import HandlerThreads

T = TypeVar("T")
log = logging.getLogger("penstock.executor")

_LAST_SECONDS = 1.0
"""How long tasks that handlers started and did not wait for may take to end when their loop stops."""
_unending: set[asyncio.Task[Any]] = set()
"""Tasks that ignored it. A coroutine that swallows every exception swallows `GeneratorExit`, too, and the garbage
collector, which raises it in there, would never come back. So they are never collected."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop if that is installed: its callbacks cost less than asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class LoopThread:
    """Runs a loop in its thread, and calls and coroutines of other threads on that loop.

    A handler's code can end a loop: by `loop.stop()`, or by `SystemExit` in a task or callback, which asyncio raises
    out of `run_forever`. The loop has lost nothing then, and goes on.

    Arguments:
        threads: for `asyncio.to_thread`.
    """

    def __init__(self, name: str, threads: HandlerThreads) -> None:
        self._name = name
        self._loop = new_event_loop()
        self._loop.set_default_executor(threads)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def thread_id(self) -> int | None:
        return None if self._thread is None else self._thread.ident

    def start(self) -> None:
        self._thread = start_thread(self._name, self._run, self._stopping)

    def current_task(self) -> asyncio.Task[Any] | None:
        """The task that runs now, or that blocks the loop. Safe from any thread."""
        return asyncio.current_task(self._loop)

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call on the loop, soon."""
        self._loop.call_soon_threadsafe(function, *args)

    def call(self, function: Callable[[], T]) -> T:
        """Call on the loop and return what it returns."""

        async def call_on_loop() -> T:
            return function()

        return self.run(call_on_loop())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return its result. Not from the loop's own thread.

        Raises:
            RuntimeError: the loop has been stopped, and would never run it.
        """
        if self._stopping.is_set():
            work.close()
            raise RuntimeError(f"the {self._name} has stopped")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._stopping.is_set():
            try:
                self._loop.run_forever()
                if not self._stopping.is_set():
                    faults["event loop stopped"] += 1
                    log.error("code of a handler stopped the event loop, which goes on")
            except (SystemExit, KeyboardInterrupt) as error:
                faults["event loop stopped"] += 1
                log.error("a task or callback raised %r out of the event loop, which goes on", error, exc_info=error)
        try:
            self._end_tasks()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _end_tasks(self) -> None:
        """Cancel the tasks that still run, as `asyncio.run` does, and wait for them, for a while."""
        deadline = time.monotonic() + _LAST_SECONDS
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        while (tasks := asyncio.all_tasks(self._loop)) and (seconds := deadline - time.monotonic()) > 0:
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=seconds))
        for task in tasks:
            _unending.add(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            log.warning("%s ignores that it was cancelled; it ends with the process", task.get_name())


class Tasks:
    """The tasks of a loop, kept alive until they end. A task that fails is a fault of ours and is logged."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine on the running loop, in an empty context: the caller's may hold what a job has bound."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    async def join(self) -> None:
        """Wait for all tasks."""
        await asyncio.gather(*self._tasks - {asyncio.current_task()}, return_exceptions=True)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.critical("a task failed", exc_info=error)
