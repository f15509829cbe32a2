"""`Host`: a worker with its events, its remote control and its orderly end, for both engines."""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from penstock.config.settings import Settings
from penstock.workers.engines.monitoring.events import Events
from penstock.workers.engines.monitoring.remote_control import Remote
from penstock.workers.engines.worker import Worker, worker_name

log = logging.getLogger("penstock.worker")


class Host:
    """Starts a worker once and drains it once, in a thread of its own, so that it still answers while it drains.

    Arguments:
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
        clock: Any,
        on_stopping: Callable[[], None] = lambda: None,
        on_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        if name is not None and "@" not in name:
            name = f"{engine}@{name}"  # as Celery names its nodes
        self.worker = Worker(
            settings, engine=engine, queues=queues, concurrency=concurrency, name=name or worker_name(engine)
        )
        self.events = Events(
            settings.broker_url,
            hostname=self.worker.name,
            active=lambda: len(self.worker.executor.running()),
            clock=clock,
        )
        self.worker.executor.observers.append(self.events)
        self.remote = Remote(self.worker, self.events, self.stop)
        self.stopped = threading.Event()
        self.error: Exception | None = None
        self._on_stopping, self._on_stopped = on_stopping, on_stopped
        self._started = self._ended = False
        self._starting = threading.Lock()
        self._stop_requests: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is safe in a signal handler
        self._signals = 0
        threading.Thread(target=self._drain, name="penstock drain", daemon=True).start()

    def start(self) -> None:
        """Start the worker, unless it has been started or asked to stop before.

        Raises:
            LedgerUnavailable: the worker cannot boot.
        """
        with self._starting:
            if self._started or self._ended:
                return
            try:
                _freeze_loaded_objects()
                self.worker.start()
            except Exception as error:
                self.error = error
                raise
            self._started = True
            self.events.start()

    def stop(self) -> None:
        """Begin to drain. Returns at once; wait for `stopped`."""
        self._stop_requests.put(None)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM or SIGINT drains; a second one ends the grace; a third ends the process. In the main thread."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1
        if self._signals == 1:
            self.stop()
        elif self._signals == 2:
            self.worker.executor.hurry()
            for default in (signal.SIGTERM, signal.SIGINT):
                signal.signal(default, signal.SIG_DFL)

    def _drain(self) -> None:
        self._stop_requests.get()
        with self._starting:
            started, self._ended = self._started, True
        log.info("worker %s stops", self.worker.name)
        try:
            if started:
                self._stop_worker()
        except Exception as error:
            log.exception("worker %s did not stop in order", self.worker.name)
            self.error = error
        finally:
            self._on_stopped()
            self.stopped.set()

    def _stop_worker(self) -> None:
        self._on_stopping()
        try:
            self.worker.stop()
        finally:
            self.events.stop()


def _freeze_loaded_objects() -> None:
    """Exempt all loaded objects from garbage collection: they stay, and to walk them for every few hundred jobs was a
    fifth of a short job's cost. For a process that is a worker and nothing else."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)
