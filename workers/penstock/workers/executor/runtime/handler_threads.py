"""The threads of plain handlers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
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
        self._calls: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a call in a thread, in a copy of the caller's context; at once, however many run already.

        Raises:
            RuntimeError: the threads were shut down.
        """
        if self._closed:
            raise RuntimeError("this worker's threads have ended")
        future: Future[T] = Future()
        self._calls.put((future, copy_context().run, (function, *args), kwargs))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self._most is not None and self._count >= self._most:
                    return future
                self._count += 1
                name = f"{self._name}_{self._count}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError:  # the system has no more threads
                future.cancel()
                raise
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """End the idle threads now, the others when their calls return."""
        self._closed = True
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._run(*call)
            # It holds the future, that its error, and the error's traceback the frames down to this one: without this
            # only the garbage collector would end them.
            del call
            self._idle.release()
        self._calls.put(None)  # for the next thread

    def _run(
        self, future: Future[T], function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._around():
                value = function(*args, **kwargs)
        except StopIteration as error:
            # No future may hold it: asyncio refuses it, and then never ends.
            failure = RuntimeError("the handler raised StopIteration")
            failure.__cause__ = error
            future.set_exception(failure)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)
        finally:
            del future  # it holds its error, whose traceback holds this frame
