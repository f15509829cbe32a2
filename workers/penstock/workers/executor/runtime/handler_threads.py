"""The threads of plain handlers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class HandlerThreads(ThreadPoolExecutor):
    """Runs calls in threads that are made as needed and used again.

    They are daemon threads: a handler that does not return must not keep its process, as the threads of
    `ThreadPoolExecutor` do: an ending interpreter waits for those. Of that class it has only the type, which asyncio
    demands of a default executor.

    Arguments:
        most: the most threads; None: one for each call that runs.
        around: what each call runs within; a new one for each.
    """

    def __init__(
        self, name: str, most: int | None = None, around: Callable[[], AbstractContextManager[None]] | None = None
    ) -> None:
        self._name, self._most, self._around = name, most, around or nullcontext
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a call in a thread, in a copy of the caller's context; at once, however many run already.

        Raises:
            RuntimeError: the threads were shut down.
        """
        future: Future[T] = Future()
        try:
            self._put(partial(self._run, future, partial(copy_context().run, function, *args, **kwargs)))
        except RuntimeError:
            future.cancel()
            raise
        return future

    def start(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a call as `submit` does, for the running loop, whose own future takes half the time of one of threads.

        Raises:
            RuntimeError: as `submit`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        try:
            self._put(partial(self._run_for_loop, loop, future, copy_context(), function))
        except RuntimeError:
            future.cancel()
            raise
        return future

    def _put(self, call: Callable[[], None]) -> None:
        """Have a thread run this. Raises RuntimeError: the threads were shut down, or the system has no more; in which
        case another may still run it."""
        if self._closed:
            raise RuntimeError("this worker's threads have ended")
        self._calls.put(call)
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self._most is not None and self._count >= self._most:
                    return
                self._count += 1
                name = f"{self._name}_{self._count}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """End the idle threads now, the others when their calls return."""
        self._closed = True
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            # It holds the future, that its error, and the error's traceback the frames down to this one: without this
            # only the garbage collector would end them.
            del call
            self._idle.release()
        self._calls.put(None)  # for the next thread

    def _run(self, future: Future[T], function: Callable[[], T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        value, error = self._call(function)
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]
        else:
            future.set_exception(error)
        del future, error  # the error's traceback holds the frames up to this one

    def _run_for_loop(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], context: Context, function: Callable[[], T]
    ) -> None:
        if future.cancelled():
            return
        value, error = self._call(partial(context.run, function))
        with suppress(RuntimeError):  # the loop is closed, and no one waits
            loop.call_soon_threadsafe(_end, future, value, error)
        del future, error  # as above

    def _call(self, function: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        try:
            with self._around():
                return function(), None
        except StopIteration as error:
            # No future may hold it: asyncio refuses it, and then never ends.
            failure = RuntimeError("the handler raised StopIteration")
            failure.__cause__ = error
            return None, failure
        except BaseException as error:
            return None, error


def _end(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():  # it was cancelled
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
