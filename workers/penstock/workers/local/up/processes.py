"""A supervised process: started in its own session, its output in a log file, restarted with back-off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from penstock.config.private_files import append_private, make_private_folder
from penstock.workers.executor.attempt.memory import peak_memory, peak_of
from penstock.workers.local.up import guard

MAX_LOG_BYTES = 10 * 1024 * 1024
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""After running for so long, the next restart waits only the first pause again."""


@dataclass(frozen=True)
class Service:
    """A program to run.

    Attributes:
        name: for messages, and of its log file.
        command: the program and its arguments.
        stage: services of a lower one are stopped earlier.
        ready: whether a child that runs this is ready for work.
        environment: the whole environment of the process.
        umask: of the process; -1: this one's.
    """

    name: str
    command: Sequence[str]
    stage: int
    ready: Callable[[Child], bool]
    environment: Mapping[str, str]
    umask: int = -1


class Child:
    """A service and the process that runs it now, if any."""

    def __init__(self, service: Service, log: Path) -> None:
        self.service, self.log = service, log
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.restarts = 0
        self.start_at = 0.0
        """When to start it again, on the monotonic clock."""
        self.peak_memory_bytes: int | None = None
        """Peak memory of the process that ended last; None if it is not known."""
        self._started, self._log_start = 0.0, 0
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def start(self) -> int:
        """Start the process and return its pid."""
        with _open_log(self.log) as output:
            self._log_start = output.tell()
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops the rest in order.
            self.process = subprocess.Popen(  # noqa: S603  # a command of ours
                list(self.service.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.service.environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                umask=self.service.umask,
            )
        self.ready, self._started = False, time.monotonic()
        return self.process.pid

    def ended(self) -> int | None:
        """The exit code of a process that has ended, once; None while it runs or there is none.

        Sets `start_at`; the pause until then doubles each time.
        """
        if self.process is None or (code := self._reap(self.process)) is None:
            return None
        # What it forked, such as isolated handlers, must not outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process, self.ready = None, False
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self.start_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        return code

    def _reap(self, process: subprocess.Popen[bytes]) -> int | None:
        """Poll the process; at its end, learn how much memory it has used."""
        try:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        except ChildProcessError:
            return process.poll()  # something else in this process has waited for it
        if pid == 0:
            return None
        process.returncode = os.waitstatus_to_exitcode(status)
        # It also counts what this process had when it made the other one, until that is more.
        peak, ours = peak_of(usage), peak_memory()
        self.peak_memory_bytes = peak if ours is None or peak > ours else None
        return process.returncode

    def signal(self, number: int) -> None:
        """Signal the process, or with SIGKILL its whole group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)

    def output(self) -> str:
        """Output in the log since the last start."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._log_start)
                return file.read(MAX_LOG_BYTES).decode(errors="replace")
        except OSError:
            return ""


class Guard:
    """The process that stops everything should this one be killed; see `guard.py`."""

    def __init__(self, lock: int, grace_seconds: float) -> None:
        self._lock, self._grace = lock, grace_seconds
        self._known: dict[int, int] = {}
        self._process = self._start()

    def add(self, pid: int, stage: int) -> None:
        self._known[pid] = stage
        self._say(f"+{pid} {stage}")

    def remove(self, pid: int) -> None:
        self._known.pop(pid, None)
        self._say(f"-{pid}")

    def close(self) -> None:
        """Close the pipe; the guard then stops the processes that were added and not removed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  # a script of ours
            [sys.executable, "-I", "-S", guard.__file__, str(self._grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(self._lock,),
            bufsize=0,
        )

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
        except BrokenPipeError:  # the guard itself was killed
            self._process.wait()
            self._process.stdin.close()
            self._process = self._start()
            for pid, stage in self._known.items():
                self._say(f"+{pid} {stage}")


def _open_log(log: Path) -> IO[bytes]:
    make_private_folder(log.parent)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
    return append_private(log)
