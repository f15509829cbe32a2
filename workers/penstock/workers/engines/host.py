"""`Host`: a worker with its events, its remote control and its orderly end, for both engines."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from penstock.config import supervision
from penstock.config.settings import Settings
from penstock.ledger.members.heartbeats import DRAIN
from penstock.workers.engines.monitoring.events import Events
from penstock.workers.engines.monitoring.remote_control import Remote
from penstock.workers.engines.renewal.link import HURRY, RETIRE, ParentLink
from penstock.workers.engines.renewal.wear import Wear
from penstock.workers.engines.worker import Worker, worker_name
from penstock.workers.executor.executor import STOPPING
from penstock.workers.telemetry.health.endpoints import Endpoints
from penstock.workers.telemetry.health.siblings import Siblings

log = logging.getLogger("penstock.worker")

_GIVE_BACK_AFTER_SECONDS, _LAST_SECONDS = 8.0, 10.0
"""Seconds after the grace when a drain that hangs gives its jobs back, and when it ends with its process."""
EXIT_UNFINISHED = 70
"""Exit code of a worker whose drain hung (`EX_SOFTWARE` of sysexits.h)."""


class Host:
    """Starts a worker once and drains it once, in a thread of its own, so that it still answers while it drains.

    Made in a thread other than the main one, it is the guest of another program, such as a test: it handles no signals,
    and does not end the process, not even if a drain hangs.

    Arguments:
        parent: starts successors of this process, which then renews itself; None: it does not.
        clock: a logical clock with `forward()`, such as kombu's.
        on_stopping, on_stopped: called from the drain's thread before and after the worker stops.

    Attributes:
        stopped: set when the worker has stopped, or was asked to before it started.
        error: raised by the worker's start or stop.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine: str,
        queues: Sequence[str],
        concurrency: int | None,
        name: str | None,
        parent: ParentLink | None,
        clock: Any,
        on_stopping: Callable[[], None] = lambda: None,
        on_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        if name is not None and "@" not in name:
            name = f"{engine}@{name}"  # as Celery names its nodes
        asked_name = name
        if name is not None and parent is not None:
            name = f"{name}-{parent.number}"  # its successor has another name, and both run for a while
        self.worker = Worker(
            settings,
            engine=engine,
            queues=queues,
            concurrency=concurrency,
            name=name or worker_name(engine),
            lease_keeper=True if parent is None or parent.keeper is None else parent.keeper,
        )
        self.events = Events(hostname=self.worker.name, active=lambda: len(self.worker.executor.running()), clock=clock)
        self.worker.executor.observers.append(self.events)
        self.worker.executor.on_order(self._obey)
        self.remote = Remote(self.worker, self.events, self.stop)
        self._parent = parent
        self._is_guest = threading.current_thread() is not threading.main_thread()
        self._wear = None
        if parent is not None and Wear.applies(settings):
            self._wear = Wear(settings, parent.ask_for_successor)
            self.worker.executor.observers.append(self._wear)
        elif Wear.applies(settings):
            log.warning("max_jobs and max_memory have no effect here: only `penstock worker` replaces its processes")
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self._on_stopping, self._on_stopped = on_stopping, on_stopped
        self._started = self._ended = False
        self._starting = threading.Lock()
        self._stop_requests: queue.SimpleQueue[float] = queue.SimpleQueue()
        """Ends of the grace, on the monotonic clock. Its put is safe in a signal handler."""
        self._signals = 0
        self._hurried = False
        self._endpoints = Endpoints(
            settings,
            name=asked_name or self.worker.name,
            role="worker",
            registry=self.worker.registry,
            live=self._not_live,
            ready=self._not_ready,
            started=lambda: None if self._started else "starting",
            siblings=None if parent is None or parent.group is None else Siblings(parent.group, parent.number),
            listener=None if parent is None else parent.listener,
        )
        # A successor of a process with a port of its own answers once it takes over.
        self._answering = parent is None or parent.group is not None or parent.number == 1
        if self._answering:
            self._endpoints.open()
        threading.Thread(target=self._drain, name="penstock drain", daemon=True).start()

    def start(self) -> None:
        """Start the worker, unless it has been started or asked to stop before.

        Raises:
            LedgerUnavailable: the worker cannot boot.
            ConfigError: it is larger than `max_memory` already.
        """
        with self._starting:
            if self._started or self._ended:
                return
            try:
                if self._wear is not None:
                    self._wear.check_start()
                if not self._is_guest:
                    _freeze_loaded_objects()
                self.worker.start()
            except Exception as error:
                self.error = error
                raise
            self._started = True
            supervision.on_give_up(self._fail)
            if self._parent is not None:
                orders = {RETIRE: self.retire, HURRY: self.hurry}
                self._parent.start(ready=self._takes_over, orders=orders, stop=self.stop)

    def stop(self) -> None:
        """Begin to drain. Returns at once; wait for `stopped`."""
        self._stop_requests.put(time.monotonic() + self.worker.settings.grace_seconds)

    def drain(self) -> None:
        """Begin to drain, as `stop` does, but let the running jobs take as long as they take."""
        self._stop_requests.put(math.inf)

    def retire(self) -> None:
        """Drain while a successor answers."""
        self._endpoints.close()
        self.drain()

    def hurry(self) -> None:
        """End the grace. Safe in a signal handler."""
        self._hurried = True
        self.worker.executor.hurry()

    def _obey(self, order: str) -> None:
        log.warning("worker %s was ordered to %s, by a person", self.worker.name, order)
        if order == DRAIN:
            self.drain()
        else:
            self.stop()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM or SIGINT drains; a second one ends the grace; a third ends the process. A guest handles neither.

        Below a parent each of them only drains: a signal to the whole group comes a second time from the parent, which
        gives the other orders.
        """
        if self._is_guest:
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A process that has drained and is ending must not look to its parent as if the signal had killed it.
                signal.signal(number, handler if self._parent is None else signal.SIG_IGN)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1
        if self._signals == 1 or self._parent is not None:
            self.stop()
        elif self._signals == 2:
            self.hurry()
            for default in (signal.SIGTERM, signal.SIGINT):
                signal.signal(default, signal.SIG_DFL)

    def _takes_over(self) -> bool:
        """Whether the worker takes jobs. From then on this process answers for it."""
        ready = self.worker.ready
        if ready and not self._answering:
            self._answering = True
            self._endpoints.open(patient=True)
        return ready

    def _not_live(self) -> str | None:
        return self.worker.not_live() if self._started else None

    def _not_ready(self) -> str | None:
        if self._ended:
            return STOPPING
        return self.worker.not_ready() if self._started else "starting"

    def _drain(self) -> None:
        deadline = self._stop_requests.get()
        with self._starting:
            started, self._ended = self._started, True
        log.info("worker %s stops", self.worker.name)
        threading.Thread(target=self._end_in_time, args=(deadline,), name="penstock deadline", daemon=True).start()
        try:
            if started:
                self._stop_worker(deadline)
        except BaseException as error:
            log.exception("worker %s did not stop in order", self.worker.name)
            self.error = error
        finally:
            supervision.on_give_up(None)
            if self._parent is not None:
                self._parent.close()
            self._endpoints.close()
            self._on_stopped()
            self.stopped.set()

    def _fail(self, reason: str) -> None:
        """Drain, and end with an error: a loop of the worker has given up."""
        self.error = self.error or supervision.ProcessFailed(reason)
        self.stop()

    def _end_in_time(self, deadline: float) -> None:
        """End the process if the drain hangs, whatever holds it: a handler that blocks the loop, a query, a broker."""
        while not self.stopped.wait(0.1):
            with contextlib.suppress(queue.Empty):
                deadline = min(deadline, self._stop_requests.get_nowait())
            if self._hurried:
                deadline = min(deadline, time.monotonic())
            late = time.monotonic() - deadline
            if late > 0:
                self.worker.executor.hurry()  # a drain that began with a renewal has no end of its own
            if late > _GIVE_BACK_AFTER_SECONDS:
                break
        else:
            # The engine has only to leave, and perhaps waits for its broker.
            if not self._is_guest:
                supervision.end_in_time(0 if self.error is None else 1, seconds=_LAST_SECONDS)
            return
        threading.Thread(target=self.worker.executor.abandon, name="penstock abandon", daemon=True).start()
        if not self.stopped.wait(_LAST_SECONDS - _GIVE_BACK_AFTER_SECONDS):
            if self._is_guest:
                log.critical("worker %s does not stop; what its jobs hold stays in this process", self.worker.name)
                return
            log.critical("worker %s does not stop; its process ends now", self.worker.name)
            logging.shutdown()
            os._exit(EXIT_UNFINISHED)

    def _stop_worker(self, deadline: float) -> None:
        self._on_stopping()
        try:
            self.worker.stop(max(0.0, deadline - time.monotonic()))
        finally:
            self.events.stop()


def _freeze_loaded_objects() -> None:
    """Exempt all loaded objects from garbage collection: they stay, and to walk them for every few hundred jobs was a
    fifth of a short job's cost. For a process that is a worker and nothing else."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)
