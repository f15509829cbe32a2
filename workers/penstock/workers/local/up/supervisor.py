"""Runs services together: starts them, restarts what dies, stops all in order."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.config.errors import PenstockError
from penstock.config.supervision import describe_exit
from penstock.workers.local.up.processes import Child, Guard, Service

LOOK_SECONDS = 0.1
"""Between looks at the children."""
START_SECONDS = 120.0
"""Time limit for a service to become ready."""
REPORT_SECONDS = 2.0
"""Time limit for the last `died` callbacks at the end."""
LAST_LINES = 12
"""Lines shown of the log of a service that did not start."""


class Supervisor:
    """Not thread-safe: while `watch` runs in a thread, other threads only read `children` and set its event.

    Arguments:
        logs: the folder of the log files, one for each service.
        grace_seconds: how long a stage may take to stop before it is killed.
        say: takes a line for each change of state.
        died: called for each process that ended, with its pid, how it ended and its peak memory in bytes. It runs in
            a thread, so it may block; its errors are ignored.
    """

    def __init__(
        self,
        logs: Path,
        *,
        lock: int,
        grace_seconds: float,
        say: Callable[[str], None],
        died: Callable[[int, str, int | None], None] = lambda pid, how, peak: None,
    ) -> None:
        self.children: dict[str, Child] = {}
        self._logs, self._grace, self._tell = logs, grace_seconds, say
        self._guard = Guard(lock, grace_seconds)
        self._died = died
        self._reports: list[threading.Thread] = []

    def start(self, services: Sequence[Service], stopping: threading.Event) -> None:
        """Start services together and return when all are ready, or `stopping` is set.

        Raises:
            PenstockError: one ended or took too long; the message ends with the last lines of its log.
        """
        started = []
        for service in services:
            child = Child(service, self._logs / f"{service.name}.log")
            self.children[service.name] = child
            self._start(child)
            started.append(child)
        deadline = time.monotonic() + START_SECONDS
        while waiting := [child for child in started if not child.ready]:
            if stopping.wait(LOOK_SECONDS):
                return
            for child in waiting:
                pid = child.pid
                if (code := child.ended()) is not None and pid is not None:
                    self._guard.remove(pid)
                    raise _not_started(child, f"ended with {describe_exit(code)}")
                self._check_ready(child)
            if time.monotonic() > deadline:
                raise _not_started(waiting[0], f"was not ready after {START_SECONDS:.0f} s")

    def watch(self, stopping: threading.Event) -> None:
        """Restart what dies, until the event is set."""
        while not stopping.wait(LOOK_SECONDS):
            for child in self.children.values():
                self._look(child)

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Stop all, the lowest stage first, and return when nothing runs.

        Arguments:
            hurry: returns true once waiting is no longer wanted; running processes are then killed.
        """
        for stage in sorted({child.service.stage for child in self.children.values()}):
            self._stop([child for child in self.children.values() if child.service.stage == stage], hurry)
        self._guard.close()
        for thread in self._reports:
            thread.join(REPORT_SECONDS)

    def _start(self, child: Child) -> None:
        self._guard.add(child.start(), child.service.stage)

    def _look(self, child: Child) -> None:
        pid = child.pid
        if pid is None:
            if time.monotonic() >= child.start_at:
                child.restarts += 1
                self._start(child)
                self._say(f"{child.service.name} starts again (pid {child.pid})")
        elif (code := child.ended()) is not None:
            self._guard.remove(pid)
            self._report_exit(pid, describe_exit(code), child.peak_memory_bytes)
            self._say(
                f"{child.service.name} (pid {pid}) ended with {describe_exit(code)}; starts again in "
                f"{child.start_at - time.monotonic():.1f} s; its log: {child.log}"
            )
        else:
            self._check_ready(child)

    def _check_ready(self, child: Child) -> None:
        if not child.ready and child.pid is not None and child.service.ready(child):
            child.ready = True
            self._say(f"{child.service.name} is ready (pid {child.pid})")

    def _report_exit(self, pid: int, how: str, peak: int | None) -> None:
        def tell() -> None:
            with contextlib.suppress(Exception):
                self._died(pid, how, peak)

        self._reports = [thread for thread in self._reports if thread.is_alive()]
        self._reports.append(threading.Thread(target=tell, daemon=True))
        self._reports[-1].start()

    def _say(self, line: str) -> None:
        # A closed terminal must not prevent the stop; rich raises SystemExit then.
        with contextlib.suppress(OSError, SystemExit):
            self._tell(line)

    def _stop(self, children: list[Child], hurry: Callable[[], bool]) -> None:
        for child in children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while running := [child for child in children if child.pid is not None]:
            for child in running:
                pid = child.pid
                if (code := child.ended()) is not None and pid is not None:
                    self._guard.remove(pid)
                    self._report_exit(pid, describe_exit(code), child.peak_memory_bytes)
                    self._say(f"{child.service.name} has stopped" + (f" with {describe_exit(code)}" if code else ""))
            if hurry() or time.monotonic() > deadline:
                for child in children:
                    child.signal(signal.SIGKILL)
            time.sleep(0.02)


def _not_started(child: Child, what: str) -> PenstockError:
    lines = "".join(f"\n    {line}" for line in child.output().splitlines()[-LAST_LINES:])
    return PenstockError(f"{child.service.name} {what}; its log {child.log} ends with:{lines or ' nothing'}")
