"""`Worker`: the parts of one engine process, put together in one place. An engine hosts it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import Settings, redact_url
from penstock.ledger.members import controls, heartbeats
from penstock.ledger.members.notices import CHANNEL as NOTICES
from penstock.ledger.sql.database import Database
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.dispatcher.fleet.alerts import NoDispatcherAlerts
from penstock.workers.dispatcher.outbox.notifications import Notifications, SharedNotifications
from penstock.workers.dispatcher.poller import Poller
from penstock.workers.engines.boot_checks import check_settings, warn_unhandled
from penstock.workers.executor.attempt.child import parent as children
from penstock.workers.executor.attempt.session import import_sessions
from penstock.workers.executor.executor import Executor
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.intake import Intake
from penstock.workers.executor.limit_gate import open_gate
from penstock.workers.executor.runtime.meter import Meter
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.executor.runtime.orders import Orders
from penstock.workers.handlers.registry import handlers
from penstock.workers.handlers.resources import provider_modules
from penstock.workers.telemetry.metrics.registry import open_registry
from penstock.workers.telemetry.observers import close_observers, telemetry_observers
from penstock.workers.workflows.definition import check_workflows

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from penstock.workers.brokers.redis.lease_keeper import KeeperProcess
    from penstock.workers.telemetry.metrics.worker_metrics import WorkerMetrics

log = logging.getLogger("penstock.worker")

_STOP_SECONDS = 10.0
"""The longest wait for a round of a poller that is under way when the worker stops."""


def worker_name(engine: str) -> str:
    """`engine@host-pid-xxxx`: unique also where pids repeat, as in containers."""
    return f"{engine}@{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


class Worker:
    """Consumer, intake, executor and ledger of one process.

    Arguments:
        queues: the queues to consume.
        concurrency: attempts running at a time; None: the largest that the settings of its queues name, or with the
            pool of processes as many as the machine has processors.
        name: unique among all workers; None makes one.
        consumer: for an engine or test that brings its own.
        lease_keeper: see `open_consumer`.

    Raises:
        KindError: handlers ask for what nothing provides, or their kinds for what the settings do not allow.
        ConfigError: a setting is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine: str,
        queues: Iterable[str],
        concurrency: int | None = None,
        name: str | None = None,
        observers: Sequence[Observer] = (),
        consumer: Consumer | None = None,
        lease_keeper: bool | KeeperProcess = True,
    ) -> None:
        handlers.check()
        check_workflows()
        queues = sorted(set(queues))
        if consumer is None:
            check_settings(handlers, settings, queues)
        self.settings, self.engine = settings, engine
        self.name = name or worker_name(engine)
        self.queues = queues
        self.database = Database(settings.database_url, pool_size=1, name=self.name)
        weights = {queue: of_queue.weight for queue, of_queue in settings.queues.items()}
        self.consumer = consumer or open_consumer(
            settings.broker_url,
            self.queues,
            name=self.name,
            prefix=settings.prefix,
            lease_seconds=settings.lease_seconds,
            max_message_bytes=settings.message_limit,
            lease_keeper=lease_keeper,
            weights=weights,
        )
        self.orders = Orders(self.consumer, weights)
        self._pollers: list[Poller] = [] if consumer is not None else self._open_pollers()
        connections = self.consumer.connections if consumer is None else None
        self._changes = None if connections is None else ChangePublisher(connections, prefix=settings.prefix)
        self.registry, self._metrics = _open_metrics(settings, engine)
        counted = [self._metrics] if self._metrics is not None else []
        self._telemetry = telemetry_observers(settings, worker=self.name, engine=engine)
        self.executor = Executor(
            settings,
            self.database,
            name=self.name,
            concurrency=concurrency or _default_concurrency(settings, self.queues),
            observers=[*self._telemetry, *counted, *observers],
            changes=self._changes,
            meter=self._metrics,
            orders=self.orders,
            limits=None
            if consumer is not None
            else open_gate(settings, self.name, handlers, queues, self.orders, connections),
            apart=engine != "inline",
        )
        self.intake = Intake(self.consumer, self.executor, self._metrics or Meter())
        if self._metrics is not None:
            self._metrics.watch(self)

    def start(self) -> None:
        """Register the worker in the ledger and begin to fetch. Returns at once.

        Raises:
            LedgerUnavailable: the database cannot be reached or is not set up.
        """
        modules = {handler.function.__module__ for handler in handlers} | provider_modules()
        children.prepare(sorted(modules), self.settings)
        consumed = [handler for handler in handlers if handler.kind.queue in self.queues]
        import_sessions(consumed, self.settings.pool)
        heartbeats.register(
            self.database,
            self.name,
            engine=self.engine,
            queues=self.queues,
            kinds={handler.kind.name: handler.kind.queue for handler in handlers},
            lease=self.settings.lease,
            concurrency=self.executor.concurrency,
        )
        warn_unhandled(handlers, self.queues, heartbeats.known_kinds(self.database))
        if self._changes is not None:
            self._changes.start()
        self.executor.obey(controls.in_force(self.database))
        self.executor.start(pooled=[h.kind.name for h in consumed if h.mode_in(self.settings.pool) == "process"])
        self.intake.start()
        for poller in self._pollers:
            poller.start()
        log.info(
            "worker %s consumes %s from %s, %d at a time",
            self.name,
            ", ".join(self.queues),
            redact_url(self.settings.broker_url),
            self.executor.concurrency,
        )

    def stop(self, grace_seconds: float | None = None) -> None:
        """Drain: fetch no more, release what has not started, let running jobs finish within the grace."""
        grace = self.settings.grace_seconds if grace_seconds is None else grace_seconds
        self.intake.stop()
        self.executor.drain(grace)
        for poller in self._pollers:
            poller.stop()
        for poller in self._pollers:
            poller.join(_STOP_SECONDS)
        close_observers(self._telemetry)
        if self._changes is not None:
            self._changes.close()
        self.consumer.close()
        try:
            heartbeats.sign_off(self.database, self.name)
            heartbeats.report(self.database, self.name, tallies=self.executor.tallies())
        except LedgerUnavailable as error:
            log.warning("%s; the end of worker %s, or its last rates, may not be on record", error, self.name)
        self.database.close()
        log.info("worker %s has stopped", self.name)

    def _open_pollers(self) -> list[Poller]:
        """Services of its own: the alerts that no dispatcher can judge, and notifications of orders and controls."""
        pollers: list[Poller] = [*NoDispatcherAlerts.open_for_worker(self.settings, self.database)]
        direct_url, orders = self.settings.database_direct_url, self.orders
        if Notifications.possible(self.database):
            orders.listens = SharedNotifications(self.database, orders.notified, NOTICES).is_quiet
        elif Notifications.possible(self.database, direct_url):
            notices = Notifications(
                self.database, orders.notified, direct_url, channel=NOTICES, about="notices of orders"
            )
            orders.listens = lambda: notices.listens
            pollers.append(notices)
        return pollers

    @property
    def ready(self) -> bool:
        """Whether jobs flow: it consumes, and its ledger is there."""
        return self.not_ready() is None

    @property
    def slots(self) -> tuple[int, int]:
        """The slots that are used, and those that are free."""
        used = len(self.executor.running())
        return used, max(self.executor.concurrency - used, 0)  # over a lower number nothing is stopped

    @property
    def in_flight(self) -> int:
        """Jobs that were fetched and are not settled."""
        return self.executor.in_flight

    def not_ready(self) -> str | None:
        """Why no jobs flow: which of broker, ledger and limits is missing, or that it stops; None: they do."""
        return self.executor.not_ready() or self.intake.not_ready()

    def not_live(self) -> str | None:
        """Why it makes no progress; None: it does. An outage of a broker or database is none of its own."""
        if (problem := self.executor.not_live() or self.intake.not_live()) is not None:
            return problem
        return self.executor.not_settling() if self.intake.alive else None


def _default_concurrency(settings: Settings, queues: Sequence[str]) -> int:
    if settings.pool == "processes":
        return os.cpu_count() or 1
    return max((settings.queue(queue).concurrency for queue in queues), default=1)


def _open_metrics(settings: Settings, engine: str) -> tuple[CollectorRegistry | None, WorkerMetrics | None]:
    """The registry of a worker's metrics, and what counts its jobs; None: no one asks for them."""
    registry = open_registry(settings, role="worker", engine=engine)
    if registry is None:
        return None, None
    from penstock.workers.telemetry.metrics.worker_metrics import WorkerMetrics

    metrics = WorkerMetrics(engine=engine)
    registry.register(metrics)
    return registry, metrics
