"""`Parent`: the process that stays while the worker processes below it come and go."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from penstock.config.settings import Settings
from penstock.config.supervision import describe_exit
from penstock.workers.engines.renewal.link import HURRY, READY, RENEW, RETIRE, VARIABLE

log = logging.getLogger("penstock.worker")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""After a successor that did not start, before the next one."""
START_SECONDS = 300.0
"""Time limit for a successor to become ready, and then to end."""
LOOK_SECONDS = 1.0
"""Between looks at processes that keep their socket open after their end, in a process that they forked."""
REPORT_SECONDS = 10.0
"""Time limit for the report of an exit when the parent itself ends: it imports SQLAlchemy and connects for that."""
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Process:
    """A worker process, and our end of the socket to it.

    Attributes:
        ready: whether it has reported that it fetches jobs.
        worn: whether it has asked for a successor.
    """

    def __init__(self, command: Sequence[str], number: int) -> None:
        self.number = number
        self.ready = self.worn = False
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        with theirs:
            environment = {**os.environ, VARIABLE: f"{theirs.fileno()} {number}"}
            try:
                self._process = subprocess.Popen(command, env=environment, pass_fds=(theirs.fileno(),))  # noqa: S603
            except BaseException:
                self.socket.close()
                raise
        self.started_at = time.monotonic()
        self._received = b""

    def __str__(self) -> str:
        return f"worker process {self.number} (pid {self.pid})"

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self) -> None:
        """Read the lines that the process has sent."""
        try:
            while data := self.socket.recv(4096):
                self._received += data
        except (BlockingIOError, ConnectionError):
            pass
        *lines, self._received = self._received.split(b"\n")
        self.ready = self.ready or READY in lines
        self.worn = self.worn or RENEW in lines

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def order(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # it is ending
            self.socket.sendall(line + b"\n")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)


class Parent:
    """Keeps a worker process running, and lets a successor follow it whenever it asks for one.

    SIGTERM and SIGINT let all processes drain, a second one ends their grace, a third kills them; other signals are
    passed on. A process that ends unasked ends the whole worker: restarts are the business of what runs this.

    Arguments:
        command: of a worker process, the same for each.
        died: called with a process id and how the process ended, where that was not in order. It runs in a thread, so
            it may block; its errors are logged.
    """

    def __init__(self, command: Sequence[str], *, died: Callable[[int, str], None] = lambda pid, how: None) -> None:
        self._command, self._died = command, died
        self._working: Process | None = None
        self._successor: Process | None = None
        self._retiring: list[Process] = []
        self._started = 0
        self._retry_at, self._pause = 0.0, FIRST_PAUSE_SECONDS
        self._signals: list[int] = []
        self._stops = 0
        self._code = 0
        self._reports: list[threading.Thread] = []

    def run(self) -> int:
        """Run until the worker has ended. Returns its exit code; of a process that was killed, 128 + the signal.

        Raises:
            OSError: the first process cannot be started.
        """
        with self._handling_signals() as wakeup:
            self._working = self._start()
            while self._processes:
                self._wait(wakeup)
                self._handle_signals()
                for process in self._processes:
                    process.read()
                    if (code := process.ended()) is not None:
                        self._remove(process, code)
                self._renew()
        for thread in self._reports:
            thread.join(REPORT_SECONDS)
            if thread.is_alive():
                log.warning("%s took longer than %.0f s and is not waited for", thread.name, REPORT_SECONDS)
        return self._code

    @property
    def _processes(self) -> list[Process]:
        return [process for process in (self._working, self._successor, *self._retiring) if process is not None]

    def _start(self) -> Process:
        self._started += 1
        return Process(self._command, self._started)

    def _wait(self, wakeup: socket.socket) -> None:
        """Wait until a signal came, a process reported or ended, or a while has passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(wakeup, selectors.EVENT_READ)
            for process in self._processes:
                selector.register(process.socket, selectors.EVENT_READ)
            selector.select(LOOK_SECONDS)
        with contextlib.suppress(BlockingIOError):
            wakeup.recv(4096)

    # Renewal.

    def _renew(self) -> None:
        """Take the next step of a renewal, if one is due."""
        if self._stops or self._working is None:
            return
        if self._successor is None:
            if self._working.worn and time.monotonic() >= self._retry_at:
                self._start_successor()
        elif self._successor.ready:
            log.info("%s is ready; %s finishes its jobs", self._successor, self._working)
            self._working.order(RETIRE)
            self._retiring.append(self._working)
            self._working, self._successor = self._successor, None
            self._pause = FIRST_PAUSE_SECONDS
        elif (late := time.monotonic() - self._successor.started_at - START_SECONDS) > 0:
            self._successor.signal(signal.SIGTERM if late < START_SECONDS else signal.SIGKILL)

    def _start_successor(self) -> None:
        try:
            self._successor = self._start()
        except OSError as error:
            self._postpone(f"the successor of {self._working} cannot be started: {error}")
        else:
            log.info("%s starts, to follow %s", self._successor, self._working)

    def _postpone(self, problem: str) -> None:
        log.error("%s; %s goes on, and the next try is in %.0f s", problem, self._working, self._pause)
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    # Ends.

    def _remove(self, process: Process, code: int) -> None:
        """Forget a process that has ended, and draw the consequences."""
        process.socket.close()
        how = describe_exit(code)
        if code != 0:
            self._report(process.pid, how)
        if process is self._successor:
            self._successor = None
            if not self._stops:
                self._postpone(f"{process} ended with {how} before it was ready")
            return
        if process in self._retiring:
            self._retiring.remove(process)
            log.log(logging.ERROR if code else logging.INFO, "%s has ended with %s", process, how)
        else:
            self._working = None
            if not self._stops:
                log.log(logging.ERROR if code else logging.INFO, "%s has ended with %s; this worker ends", process, how)
                self._code = _shell_code(code)
                self._stop()
        if self._stops:
            self._code = self._code or _shell_code(code)

    def _stop(self) -> None:
        """Let all processes drain; the second time, end their grace; then kill them."""
        self._stops += 1
        for process in self._processes:
            if self._stops == 1:
                process.signal(signal.SIGTERM)
            elif self._stops == 2:
                process.order(HURRY)
            else:
                process.signal(signal.SIGKILL)

    def _report(self, pid: int, how: str) -> None:
        def report_exit() -> None:
            try:
                self._died(pid, how)
            except Exception:
                log.warning("that process %d ended with %s is not on record", pid, how, exc_info=True)

        self._reports.append(
            threading.Thread(target=report_exit, name=f"the report of process {pid}'s end", daemon=True)
        )
        self._reports[-1].start()

    # Signals.

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[socket.socket]:
        """Note signals while the block runs; yields a socket that is readable when one has come."""
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        numbers = [number for number in (*_STOPPING, *_PASSED_ON) if signal.getsignal(number) != signal.SIG_IGN]
        before = {
            number: signal.signal(number, lambda number, _frame: self._signals.append(number)) for number in numbers
        }
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield receiver
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            receiver.close()
            sender.close()

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in _STOPPING:
                self._stop()
            else:
                for process in self._processes:
                    process.signal(number)


def run_parent(settings: Settings) -> int:
    """Run this program's own command line below a parent. Returns the exit code.

    Exits of worker processes that were not in order go to the ledger, where their jobs' crashes are described.
    """

    def died(pid: int, how: str) -> None:
        from penstock.ledger.members.heartbeats import record_worker_exit
        from penstock.ledger.sql.database import Database

        with contextlib.closing(Database(settings.database_url)) as database:
            record_worker_exit(database, pid, how, None)

    return Parent([sys.executable, *sys.orig_argv[1:]], died=died).run()


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code
