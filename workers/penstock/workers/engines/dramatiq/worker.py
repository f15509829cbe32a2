"""Dramatiq's worker, hosting ours in place of its consumer and worker threads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import dramatiq
from dramatiq.middleware import MiddlewareError
from kombu.clocks import LamportClock

from penstock.config.settings import Settings
from penstock.workers.engines.dramatiq.broker import PenstockBroker, get_broker
from penstock.workers.engines.dramatiq.control import Control
from penstock.workers.engines.dramatiq.middleware import MiddlewareObserver
from penstock.workers.engines.host import Host
from penstock.workers.engines.renewal.link import ParentLink


def run_worker(
    settings: Settings,
    *,
    queues: Sequence[str],
    concurrency: int | None,
    name: str | None,
    log_level: str,
    parent: ParentLink | None,
) -> int:
    """See `penstock.workers.engines.run_worker`. Dramatiq has no log level of its own to set."""
    broker = get_broker()
    broker.connect(settings)
    broker.declare_kinds()
    broker.emit_after("process_boot")
    clock = LamportClock()
    host = Host(
        settings,
        engine="dramatiq",
        queues=queues,
        concurrency=concurrency,
        name=name,
        parent=parent,
        clock=clock,
        on_stopping=lambda: worker.before_shutdown(),
        on_stopped=lambda: broker.emit_after("worker_shutdown", worker),
    )
    worker = HostingWorker(broker, host)
    control = Control(settings.broker_url, host.remote.commands(), host.events)
    with host.signals():
        try:
            worker.start()
            control.start()
            # A signal that the kernel gives to another thread, as it may just after a SIGCONT, does not end this wait.
            while not host.stopped.wait(1.0):
                pass
            control.stop()
        finally:
            broker.close()
    if host.error is not None:
        raise host.error
    return 0


_SENTRYS = "sentry_sdk.integrations.dramatiq"


class HostingWorker(dramatiq.Worker):
    """The worker that middleware gets. It has no threads: the worker of `host` runs the jobs."""

    def __init__(self, broker: PenstockBroker, host: Host) -> None:
        super().__init__(broker, queues=set(host.worker.queues), worker_threads=host.worker.executor.concurrency)
        self.host = host

    def start(self) -> None:
        """Raises LedgerUnavailable: the worker cannot boot."""
        # Sentry's middleware would report each failure a second time, and take the attempts' scopes.
        self.broker.middleware = [item for item in self.broker.middleware if type(item).__module__ != _SENTRYS]
        self.broker.emit_before("worker_boot", self)
        observer = MiddlewareObserver(self.broker)
        if observer.hooks:
            self.host.worker.executor.observers.append(observer)
        try:
            self.host.start()
        except BaseException:
            self.broker.emit_after("worker_shutdown", self)  # or threads of middleware would keep the process
            raise
        self.broker.emit_after("worker_boot", self)

    def before_shutdown(self) -> None:
        with contextlib.suppress(MiddlewareError):  # nothing may prevent the drain
            self.broker.emit_before("worker_shutdown", self)

    def stop(self, timeout: int = 600_000) -> None:
        """Drain, within the settings' grace; waits for it at most `timeout` milliseconds."""
        self.host.stop()
        self.host.stopped.wait(timeout / 1000)

    def pause(self) -> None:
        raise NotImplementedError("a worker cannot be paused; cancel its consumers by remote control")

    def resume(self) -> None:
        raise NotImplementedError("a worker cannot be paused; cancel its consumers by remote control")
