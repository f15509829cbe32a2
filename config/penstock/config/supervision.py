"""Supervision: threads and tasks that go on, whatever they meet.

A loop that raises is logged with its traceback, counted and started again after a pause that grows. One that fails
again and again, with no healthy stretch in between, gives up: its process ends with a reason (`on_give_up`), so that
another process gets its work, and never lives on without the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from penstock.config.errors import PenstockError

log = logging.getLogger("penstock.supervision")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
HEALTHY_SECONDS = 60.0
"""A loop that ran for so long was healthy: its earlier failures no longer count."""
MOST_FAILURES = 12
"""Failures in a row after which a loop gives up: with the pauses, after half a minute or so."""
EXIT_SECONDS = 5.0
"""How long the interpreter may take to end a process that has finished: hooks of libraries send what they have."""
MOST_REASONS = 4
"""Lines in the log about one outage."""

failures: Counter[str] = Counter()
"""Name of a loop → how often it has failed since this process began."""

faults: Counter[str] = Counter()
"""Name of a fault that this process outlives, such as an unavailable ledger → how often it has begun."""

_give_up: Callable[[str], None] | None = None


def on_give_up(action: Callable[[str], None] | None) -> None:
    """Set how this process ends if a loop gives up; called with the reason. None: the loop is tried again for ever."""
    global _give_up
    _give_up = action


def give_up(reason: str) -> None:
    """End the process: it cannot do its work any more."""
    log.critical("%s; this process ends", reason)
    if _give_up is not None:
        _give_up(reason)


def end_in_time(code: int, seconds: float = EXIT_SECONDS) -> None:
    """End this process, which has finished, though a thread keeps it that a library or a handler has left.

    The interpreter waits for the threads of every `ThreadPoolExecutor`, also for one that waits for a server.
    """

    def end() -> None:
        time.sleep(seconds)
        log.warning("a thread keeps this process, which has finished and ends now")
        logging.shutdown()
        os._exit(code)

    threading.Thread(target=end, name="penstock exit", daemon=True).start()


@contextmanager
def ends_in_time() -> Iterator[None]:
    """Do what ends this process by SystemExit, and then see that it ends (`end_in_time`)."""
    code: object = 1
    try:
        yield
    except SystemExit as end:
        code = end.code
        raise
    finally:
        end_in_time(code if isinstance(code, int) else int(code is not None))


class Failures:
    """The failures of one loop.

    Arguments:
        vital: whether the process is of no use without the loop.
    """

    def __init__(self, name: str, *, vital: bool = True) -> None:
        self._name, self._vital = name, vital
        self._in_a_row = 0
        self._started_at = time.monotonic()

    def started(self) -> None:
        """Note that the loop runs, from now on."""
        self._started_at = time.monotonic()

    def failed(self, error: BaseException) -> float:
        """Log and count a failure. Returns the seconds to wait before the loop is started again."""
        if time.monotonic() - self._started_at > HEALTHY_SECONDS:
            self._in_a_row = 0
        self._in_a_row += 1
        failures[self._name] += 1
        log.error("%s failed with %s and is started again", self._name, type(error).__name__, exc_info=error)
        if self._vital and self._in_a_row == MOST_FAILURES:
            give_up(f"{self._name} has failed {self._in_a_row} times in a row, the last time with {error!r}")
        pause: float = min(FIRST_PAUSE * 2 ** (self._in_a_row - 1), LONGEST_PAUSE)
        return pause * random.uniform(0.5, 1.0)


class Outage:
    """The reasons for which a server is unavailable: each gets one line in the log, and there are few of them."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()

    def is_new(self, error: BaseException) -> bool:
        """Whether this outage has not had the reason yet: what cut a connection may not be why none can be made."""
        reason = str(error)
        if reason in self._reasons or len(self._reasons) == MOST_REASONS:
            return False
        self._reasons.add(reason)
        return True

    def end(self) -> None:
        self._reasons.clear()


class ProcessFailed(PenstockError):
    """A worker, dispatcher or gateway has ended by itself: it could not do its work any more. The message says why."""


def describe_exit(code: int) -> str:
    """An exit code of a process in words: `exit code 1`, or the name of the signal that a negative one means."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


def is_alive(pid: int) -> bool:
    """Whether there is a process with this id, be it another user's or a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def without_url(name: str) -> str:
    """The name of a loop without the database that it is for: metrics and health are read by many."""
    return name.partition(" of ")[0].partition(" from ")[0]


class EndedByItself(Exception):
    """A loop returned though it was not stopped."""


def start_thread(
    name: str, body: Callable[[], None], stopping: threading.Event, *, vital: bool = True
) -> threading.Thread:
    """Start a daemon thread that runs `body` again and again until `stopping` is set.

    Arguments:
        body: returns once `stopping` is set.
        vital: whether the process is of no use without it.
    """

    def run() -> None:
        record = Failures(name, vital=vital)
        last = False
        while not last:
            last = stopping.is_set()  # once more after a failure, so that it ends in order
            record.started()
            try:
                body()
                if stopping.is_set():
                    return
                raise EndedByItself(name)
            except BaseException as error:  # SystemExit, too, would end a thread in silence
                pause = record.failed(error)
            stopping.wait(pause)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


async def keep_running(
    name: str,
    body: Callable[[], Awaitable[None]],
    *,
    vital: bool = True,
    finished: Callable[[], bool] = lambda: False,
) -> None:
    """Run `body` again and again, until this task is cancelled or `finished` is true.

    Arguments:
        body: returns only once `finished` is true.
        vital: whether the process is of no use without it.
    """
    record, task = Failures(name, vital=vital), asyncio.current_task()
    while True:
        record.started()
        try:
            await body()
            if finished():
                return
            raise EndedByItself(name)
        except BaseException as error:
            # A cancellation that no one asked this task for comes from something that it awaited.
            cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling()
            if cancelled or isinstance(error, GeneratorExit):
                raise
            pause = record.failed(error)
        await asyncio.sleep(pause)
        if finished():
            return
