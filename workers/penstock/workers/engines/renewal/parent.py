"""`Parent`: the process that stays while the worker processes below it come and go.

With one process it starts the program a second time, and itself stays small. With several it forks them, so that they
share the memory of what it has imported: it must then have no threads and no connections.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

from penstock.config.settings import Settings
from penstock.config.supervision import describe_exit
from penstock.producers.senders import scheme
from penstock.workers.engines.renewal.link import HURRY, READY, RENEW, RETIRE
from penstock.workers.engines.renewal.starts import ForkedChild, Start, forked, in_fork, in_thread, program
from penstock.workers.telemetry.health.listener import listen

log = logging.getLogger("penstock.worker")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""After a successor that did not start, before the next one."""
START_SECONDS = 300.0
"""Time limit for a successor to become ready, and then to end."""
LOOK_SECONDS = 1.0
"""Between looks at processes that keep their socket open after their end, in a process that they forked."""
REPORT_SECONDS = 10.0
"""Time limit for the report of an exit when the parent itself ends: it imports SQLAlchemy and connects for that."""
STEADY_SECONDS = 60.0
"""After working for so long, a process that ends is followed after the first pause again."""
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Process:
    """A worker process, and our end of the socket to it.

    Arguments:
        start: starts the process, with the other end of the socket; see `Start`.

    Attributes:
        ready: whether it has reported that it fetches jobs.
        worn: whether it has asked for a successor.
    """

    def __init__(self, start: Start, number: int) -> None:
        self.number = number
        self.ready = self.worn = False
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        with theirs:
            try:
                self._process = start(theirs, number)
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


class Slot:
    """A place for a process that works, one after the other.

    Attributes:
        retry_at: when the next process may be started, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.working: Process | None = None
        self.successor: Process | None = None
        self.retry_at, self._pause = 0.0, FIRST_PAUSE_SECONDS

    def postpone(self, problem: str) -> None:
        """Wait before the next try, twice as long as the last time."""
        goes_on = f"{self.working} goes on, and " if self.working is not None else ""
        log.error("%s; %sthe next try is in %.0f s", problem, goes_on, self._pause)
        self.retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def succeeded(self) -> None:
        """Begin with a short pause again: a process works."""
        self._pause = FIRST_PAUSE_SECONDS


class Parent:
    """Keeps worker processes running, and lets a successor follow each that asks for one, one at a time.

    SIGTERM and SIGINT let all processes drain, a second one ends their grace, a third kills them; other signals are
    passed on. If there is one process and it ends unasked, the whole worker ends: restarts are the business of what
    runs this. Of several, one that ends with an error is started again after a pause, and one that ends in order, as
    by a person's order, is not; if none has ever been ready, the whole worker ends.

    Arguments:
        start: starts a worker process.
        processes: how many work at a time.
        died: called with a process id and how the process ended, where that was not in order; its errors are logged.
        report: runs such a call, which may block, and does not wait for it. Returns a function that waits for its end
            for a number of seconds, and says whether it came.
        look: called before the first process starts, and then every second or more often.
    """

    def __init__(
        self,
        start: Start,
        *,
        processes: int = 1,
        died: Callable[[int, str], None] = lambda pid, how: None,
        report: Callable[[Callable[[], None]], Callable[[float], bool]] = in_thread,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._start_process, self._died, self._run_report, self._look = start, died, report, look
        self._several = processes > 1
        self._slots = [Slot() for _ in range(processes)]
        self._retiring: list[Process] = []
        self._started = 0
        self._ever_ready = False
        self._signals: list[int] = []
        self._stops = 0
        self._code = 0
        self._reports: list[tuple[int, Callable[[float], bool]]] = []

    def run(self) -> int:
        """Run until the worker has ended. Returns its exit code; of a process that was killed, 128 + the signal.

        Raises:
            OSError: a first process cannot be started.
        """
        with self._handling_signals() as wakeup:
            try:
                self._look()
                for slot in self._slots:
                    slot.working = self._start()
                while self._processes or (self._slots and not self._stops):
                    self._wait(wakeup)
                    self._handle_signals()
                    for process in self._processes:
                        process.read()
                        if (code := process.ended()) is not None:
                            self._remove(process, code)
                    self._renew()
                    self._look()
            except ForkedChild:
                for process in self._processes:
                    process.socket.close()  # the process there must notice the parent's end, not this one's
                raise
        for pid, ended in self._reports:
            if not ended(REPORT_SECONDS):
                log.warning("the report of process %d's end took longer than %.0f s", pid, REPORT_SECONDS)
        return self._code

    @property
    def _processes(self) -> list[Process]:
        own = [process for slot in self._slots for process in (slot.working, slot.successor)]
        return [process for process in (*own, *self._retiring) if process is not None]

    def _start(self) -> Process:
        self._started += 1
        return Process(self._start_process, self._started)

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
        """Take the next step of each renewal and each restart that is due."""
        for slot in () if self._stops else self._slots:
            working, successor = slot.working, slot.successor
            if working is None:
                self._start_again(slot)
            elif successor is None:
                self._ever_ready = self._ever_ready or working.ready
                others_renew = any(other.successor is not None for other in self._slots)
                if working.worn and not others_renew and time.monotonic() >= slot.retry_at:
                    self._start_successor(slot, working)
            elif successor.ready:
                log.info("%s is ready; %s finishes its jobs", successor, working)
                working.order(RETIRE)
                self._retiring.append(working)
                slot.working, slot.successor = successor, None
                slot.succeeded()
            elif (late := time.monotonic() - successor.started_at - START_SECONDS) > 0:
                successor.signal(signal.SIGTERM if late < START_SECONDS else signal.SIGKILL)

    def _start_again(self, slot: Slot) -> None:
        if time.monotonic() < slot.retry_at:
            return
        try:
            slot.working = self._start()
        except OSError as error:
            slot.postpone(f"a worker process cannot be started: {error}")
        else:
            log.info("%s starts, in place of the one that ended", slot.working)

    def _start_successor(self, slot: Slot, working: Process) -> None:
        try:
            slot.successor = self._start()
        except OSError as error:
            slot.postpone(f"the successor of {working} cannot be started: {error}")
        else:
            log.info("%s starts, to follow %s", slot.successor, working)

    # Ends.

    def _remove(self, process: Process, code: int) -> None:
        """Forget a process that has ended, and draw the consequences."""
        process.socket.close()
        how = describe_exit(code)
        if code != 0:
            self._report(process.pid, how)
        level = logging.ERROR if code else logging.INFO
        slot = next((slot for slot in self._slots if process in (slot.working, slot.successor)), None)
        if slot is None:
            self._retiring.remove(process)
            log.log(level, "%s has ended with %s", process, how)
        elif process is slot.successor:
            slot.successor = None
            if not self._stops:
                slot.postpone(f"{process} ended with {how} before it was ready")
            return
        else:
            slot.working, slot.successor = (slot.successor, None) if self._several else (None, slot.successor)
            if not self._stops:
                self._replace(slot, process, code)
        if self._stops:
            self._code = self._code or _shell_code(code)

    def _replace(self, slot: Slot, process: Process, code: int) -> None:
        """Decide what follows a working process that has ended unasked."""
        how = describe_exit(code)
        self._ever_ready = self._ever_ready or process.ready
        if self._several and code == 0:
            log.info("%s has ended in order, and no other takes its place", process)
            if slot.working is None:
                self._slots.remove(slot)
        elif self._several and self._ever_ready:
            if time.monotonic() - process.started_at > STEADY_SECONDS:
                slot.succeeded()
            slot.postpone(f"{process} has ended with {how}")
        else:
            log.log(logging.ERROR if code else logging.INFO, "%s has ended with %s; this worker ends", process, how)
            self._code = _shell_code(code)
            self._stop()

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

        self._reports = [(pid, ended) for pid, ended in self._reports if not ended(0)]
        self._reports.append((pid, self._run_report(report_exit)))

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
    return Parent(program([sys.executable, *sys.orig_argv[1:]]), died=_recorder(settings)).run()


def run_forking(settings: Settings, processes: int) -> int:
    """Run so many processes below this one, forked off it. Returns the exit code, in the parent.

    Raises:
        ForkedChild: in each of the processes, which is to work now.
        ConfigError: the port of `http_port` is in use.
    """
    listener = None
    if settings.http_port is not None:
        listener = listen(settings.http_host, settings.http_port)
    keeper = None
    if scheme(settings.broker_url) == "redis":
        from penstock.workers.brokers.redis.lease_keeper import KeeperProcess, is_possible

        keeper = KeeperProcess() if is_possible() else None
    start = forked(group=os.getpid(), listener=listener, keeper=keeper)
    look = keeper.ensure if keeper is not None else lambda: None
    code = Parent(start, processes=processes, died=_recorder(settings), report=in_fork, look=look).run()
    if keeper is not None:
        keeper.close()
    return code


def _recorder(settings: Settings) -> Callable[[int, str], None]:
    def died(pid: int, how: str) -> None:
        from penstock.ledger.members.heartbeats import record_worker_exit
        from penstock.ledger.sql.database import Database

        with contextlib.closing(Database(settings.database_url)) as database:
            record_worker_exit(database, pid, how, None)

    return died


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code
