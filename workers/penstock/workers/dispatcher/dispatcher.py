"""Wires the dispatcher's services together and runs them until a signal comes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType

from penstock.config import supervision
from penstock.config.process.readings import Readings
from penstock.config.settings import Settings, redact_url
from penstock.ledger.sql.database import Database
from penstock.producers.senders import open_sender_from
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.wire.ids import new_id
from penstock.workers.brokers import open_consumer
from penstock.workers.brokers.loss_detection import open_loss_detector
from penstock.workers.dispatcher.due_jobs import DueJobs
from penstock.workers.dispatcher.fleet.alerts import Alerts
from penstock.workers.dispatcher.fleet.heartbeat import Heartbeat
from penstock.workers.dispatcher.inbox import Inbox
from penstock.workers.dispatcher.limits import Limits, Pauses
from penstock.workers.dispatcher.lost_jobs import LostJobs, Reaper
from penstock.workers.dispatcher.outbox.relay import open_outboxes
from penstock.workers.dispatcher.poller import Lookout, Poller, log
from penstock.workers.dispatcher.pruning import Rates, Retention
from penstock.workers.dispatcher.schedules.monitors import CronMonitors
from penstock.workers.dispatcher.schedules.service import Schedules
from penstock.workers.dispatcher.stock_clients import StockClients
from penstock.workers.dispatcher.workflows.send_jobs import StepJobs
from penstock.workers.dispatcher.workflows.service import Workflows
from penstock.workers.telemetry.failures.reports import FailureReports
from penstock.workers.telemetry.health.endpoints import Endpoints
from penstock.workers.telemetry.metrics.dispatcher_metrics import dispatcher_collectors
from penstock.workers.telemetry.metrics.registry import open_registry

OpenService = Callable[[Settings, Database], Poller]
"""Makes a service for the queues of another framework."""
STOP_SECONDS = 10.0
"""The longest wait for all running rounds, such as sends to a broker that does not answer."""


class Dispatcher:
    """All services of one dispatcher, each in a thread. It needs neither broker nor database to start.

    Arguments:
        stop: called when a person has ordered it to stop; it is to call `stop` soon.
        others: services for the queues of other frameworks.

    Attributes:
        database: the ledger's.
        registry: of its metrics; None: no one asks for them.
    """

    def __init__(
        self, settings: Settings, stop: Callable[[], None] = lambda: None, others: Sequence[OpenService] = ()
    ) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        self.registry = open_registry(settings, role="dispatcher")
        self.name = name = f"dispatcher@{socket.gethostname()}-{os.getpid()}-{new_id()[-6:]}"
        consumer = open_consumer(
            settings.broker_url,
            [DISPATCHER_QUEUE],
            name=name,
            prefix=settings.prefix,
            lease_seconds=settings.lease_seconds,
            max_message_bytes=settings.message_limit,
        )
        lanes = open_loss_detector(
            settings.broker_url, prefix=settings.prefix, timeout_seconds=settings.broker_timeout_seconds
        )
        lost = LostJobs(self.database, lanes, settings.lease)
        # Senders without the queues' max_length: due jobs were accepted long ago, and that limit is for producers.
        due = DueJobs(self.database, open_sender_from(settings), ready=lost.first_pass_done)
        step_jobs = StepJobs(self.database, open_sender_from(settings), due.wakeup, lost.first_pass_done)
        self._retention = Retention(settings, self.database)
        monitors = CronMonitors(self.database, settings)
        self.services: list[Poller] = [
            Inbox(self.database, consumer, settings.lease),
            due,
            *Limits.open(settings, self.database),
            Pauses(self.database, due.wakeup),
            *open_outboxes(settings, self.database, ready=lost.first_pass_done),
            Schedules(self.database, settings, due.wakeup, fired=monitors.follow),
            monitors,
            Workflows(settings, self.database, pushed=True, step_jobs=step_jobs),
            Reaper(self.database, settings.lease, name),
            lost,
            self._retention,
            Rates(self.database, settings.lease),
            Heartbeat(self.database, name, settings.lease, stop),
            *Alerts.open(settings, self.database, due.wakeup),
            *(open_service(settings, self.database) for open_service in others),
        ]
        self.services.append(Lookout(self.database, self.services))
        self._reports = FailureReports(settings)
        if settings.stock_queues:
            # An empty setting turns this off: on a broker that another Celery application uses too, queues named like
            # ours may belong to that application.
            self.services.append(StockClients(settings, self.database))
        for service in self.services:
            service.reports = self._reports
        self._readings: list[Readings] = []

    def sent(self) -> Counter[str]:
        """Jobs that were sent: `due`, from an `outbox`, of a `workflow`'s steps, or of `stock` clients."""
        counts: Counter[str] = Counter()
        for service in self.services:
            if service.source is not None:
                counts[service.source] += service.sent
        return counts

    def pruned(self) -> Counter[str]:
        """Rows that retention deleted, by what they are; jobs by their state."""
        return self._retention.pruned.copy()

    def not_live(self) -> str | None:
        """Why a service makes no progress; None: all do."""
        return next((reason for service in self.services if (reason := service.not_live()) is not None), None)

    def not_ready(self) -> str | None:
        """Which server does not answer, the broker or the ledger; None: both do."""
        return next((reason for service in self.services if (reason := service.not_ready()) is not None), None)

    def start(self) -> None:
        for service in self.services:
            service.start()
        if self.registry is not None:
            self._readings = dispatcher_collectors(self)
            for collector in self._readings:
                self.registry.register(collector)

    def stop(self) -> None:
        """Stop after the running rounds, or in `STOP_SECONDS`. Another dispatcher goes on with what they leave."""
        give_up_at = time.monotonic() + STOP_SECONDS
        for service in self.services:
            service.stop()
        for collector in self._readings:
            collector.close(max(give_up_at - time.monotonic(), 0.0))
        for service in self.services:
            if not service.join(max(give_up_at - time.monotonic(), 0.0)):
                log.warning("%s: still busy, left behind", service.name)
        self._reports.close()
        self.database.close()


def run_dispatcher(settings: Settings, others: Sequence[OpenService] = ()) -> int:
    """Run until SIGTERM or SIGINT. Returns the process's exit code.

    Arguments:
        others: services for the queues of other frameworks.

    Raises:
        ProcessFailed: a service failed again and again.
        ConfigError: another program has the port of `http_port`.
    """
    stopping = threading.Event()
    reasons: list[str] = []

    def fail(reason: str) -> None:
        reasons.append(reason)
        stopping.set()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    dispatcher = Dispatcher(settings, stopping.set, others)
    endpoints = Endpoints(
        settings,
        name=dispatcher.name,
        role="dispatcher",
        registry=dispatcher.registry,
        live=dispatcher.not_live,
        ready=lambda: "stopping" if stopping.is_set() else dispatcher.not_ready(),
        started=lambda: None,
    )
    supervision.on_give_up(fail)
    endpoints.open()
    dispatcher.start()
    log.info(
        "dispatcher runs: broker %s, ledger %s, %d schedules",
        redact_url(settings.broker_url),
        redact_url(settings.database_url),
        len(settings.schedules),
    )
    try:
        # In slices: on some platforms a signal's handler runs only between two steps of the main thread.
        while not stopping.wait(0.5):
            pass
    finally:
        dispatcher.stop()
        endpoints.close()
        supervision.on_give_up(None)
        for number, handler in before.items():
            signal.signal(number, handler)
    if reasons:
        raise supervision.ProcessFailed(reasons[0])
    log.info("dispatcher stopped")
    return 0
