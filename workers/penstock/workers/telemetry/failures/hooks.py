"""`@on_failure`: functions of the application that are called with failed attempts and with deaths."""

from __future__ import annotations

import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from penstock.config.supervision import faults, start_thread
from penstock.schemas.jobs.job import Job
from penstock.workers.handlers.django_project import is_set_up, old_connections_closed
from penstock.workers.telemetry.failures.failure import Failure

log = logging.getLogger("penstock.failures")

Hook = Callable[[Failure], object]
H = TypeVar("H", bound=Hook)

MOST_WAITING = 1000
"""Failures that wait for the hooks; further ones are dropped and counted."""
_WAIT_SECONDS = 0.5
_REPORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Registered:
    hook: Hook
    kinds: frozenset[str]


_hooks: list[_Registered] = []


@overload
def on_failure(target: H, /) -> H: ...


@overload
def on_failure(*kinds: type[Job]) -> Callable[[H], H]: ...


def on_failure(*targets: Any) -> Any:
    """Declare a function that is called with each `Failure` of this process: `@on_failure`, or, only for some kinds,
    `@on_failure(SendInvoice, …)`.

    It is a plain function. It is called in a thread, one failure after the other, once the failure is on record. What
    it raises is logged, and harms nothing. Of more than 1,000 failures that wait for it the latest are dropped and
    counted. A process that stops gives it two seconds for those that wait.

    Raises:
        TypeError: it is not a plain function, or an argument is not a `Job` class.
        KindError: a class has no kind.
    """
    if len(targets) == 1 and not (isinstance(targets[0], type) and issubclass(targets[0], Job)):
        return _add(targets[0], frozenset())
    for target in targets:
        if not (isinstance(target, type) and issubclass(target, Job)):
            raise TypeError(f"on_failure takes Job classes, not {target!r}")
    kinds = frozenset(target.kind().name for target in targets)
    return lambda hook: _add(hook, kinds)


def _add(hook: Any, kinds: frozenset[str]) -> Any:
    if not callable(hook) or inspect.iscoroutinefunction(hook):
        raise TypeError(f"on_failure needs a plain function, which is called in a thread, not {hook!r}")
    _hooks.append(_Registered(hook, kinds))
    return hook


class FailureHooks:
    """Calls the hooks from a thread of its own, which is started with the first failure that one wants."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Failure | None] = queue.Queue(MOST_WAITING)
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropped, self._report_at = 0, 0.0

    def add(self, failure: Failure) -> None:
        """Have the hooks called. Returns at once."""
        if not any(_wants(registered, failure) for registered in _hooks):
            return
        with self._starting:
            if self._thread is None:
                self._thread = start_thread("failure hooks", self._run, self._stopping, vital=False)
        try:
            self._waiting.put_nowait(failure)
        except queue.Full:
            faults["failure hooks too slow"] += 1
            self._dropped += 1
            if time.monotonic() >= self._report_at:
                self._report_at = time.monotonic() + _REPORT_SECONDS
                log.error("the hooks of @on_failure are too slow: %d failures were not given to them", self._dropped)

    def close(self, seconds: float) -> None:
        """Let the hooks have those that wait, for so long at most."""
        self._stopping.set()
        if self._thread is None:
            return
        with suppress(queue.Full):
            self._waiting.put_nowait(None)  # wakes it
        self._thread.join(seconds)
        if left := self._waiting.qsize():
            log.error("%d failures were not given to the hooks of @on_failure before the end", left)

    def _run(self) -> None:
        while True:
            try:
                failure = self._waiting.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                if self._stopping.is_set():
                    return
                continue
            for registered in tuple(_hooks):
                if failure is not None and _wants(registered, failure):
                    _call(registered.hook, failure)
            del failure  # its exception has frames


def _wants(registered: _Registered, failure: Failure) -> bool:
    return not registered.kinds or failure.kind in registered.kinds


def _call(hook: Hook, failure: Failure) -> None:
    try:
        with old_connections_closed() if is_set_up() else nullcontext():
            hook(failure)
    except BaseException as error:
        faults["failure hook failed"] += 1
        # Without the traceback: it shows the lines, and the text may have what is sensitive in the failure's exception.
        where = getattr(hook, "__qualname__", repr(hook))
        log.error(
            "hook %s raised %s for job %s", where, type(error).__name__, failure.job_id, exc_info=_own(error, failure)
        )


def _own(error: BaseException, failure: Failure) -> BaseException | None:
    """The error, unless it may show the failure's exception, whose text is not scrubbed."""
    seen: BaseException | None = error
    while seen is not None:
        if seen is failure.exception:
            return None
        seen = seen.__cause__ or seen.__context__
    return error
