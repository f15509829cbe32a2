"""Ways to start a worker process, and to run what a parent must not wait for: a program, or a fork of this process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from penstock.workers.engines.renewal.link import VARIABLE, ParentLink

if TYPE_CHECKING:
    from penstock.workers.brokers.redis.lease_keeper import KeeperProcess

log = logging.getLogger("penstock.worker")

_LOOK_SECONDS = 0.02


class Running(Protocol):
    """A process, as `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        ...

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        ...


Start = Callable[[socket.socket, int], Running]
"""Starts a process with its end of the socket to its parent, and its number."""


class ForkedChild(BaseException):
    """Raised in a child that was forked, so that it leaves its parent's work and comes to its own.

    Attributes:
        link: to the parent.
    """

    def __init__(self, link: ParentLink) -> None:
        super().__init__(link.number)
        self.link = link


class Fork:
    """A child of this process, forked off it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # something else in this process has waited for it
                self._code = 1
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def program(command: Sequence[str]) -> Start:
    """Start a program, which finds its end of the socket by `ParentLink.from_environment`."""

    def start(theirs: socket.socket, number: int) -> Running:
        environment = {**os.environ, VARIABLE: f"{theirs.fileno()} {number}"}
        return subprocess.Popen(command, env=environment, pass_fds=(theirs.fileno(),))  # noqa: S603

    return start


def forked(*, group: int, listener: socket.socket | None, keeper: KeeperProcess | None) -> Start:
    """Fork this process. In the child, `ForkedChild` is raised.

    Arguments:
        group, listener, keeper: see `ParentLink`.
    """

    def start(theirs: socket.socket, number: int) -> Running:
        if (names := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]) != []:
            log.warning("threads that an import has started do not run in worker processes: %s", ", ".join(names))
        if pid := os.fork():
            return Fork(pid)
        raise ForkedChild(ParentLink(theirs.dup(), number, group=group, listener=listener, keeper=keeper))

    return start


def in_thread(body: Callable[[], None]) -> Callable[[float], bool]:
    """Run it in a thread. Returns a function that waits for its end, so many seconds, and says whether it came."""
    thread = threading.Thread(target=body, name="the report of a process's end", daemon=True)
    thread.start()

    def ended(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    return ended


def in_fork(body: Callable[[], None]) -> Callable[[float], bool]:
    """Run it in a child that is forked for it, as `in_thread` does in a thread: forks go on without threads."""
    pid = os.fork()
    if pid == 0:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            body()
        finally:
            logging.shutdown()
            os._exit(0)
    process = Fork(pid)

    def ended(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        return process.poll() is not None

    return ended
