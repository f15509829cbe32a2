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
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.producers.senders import scheme
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.engines.boot_checks import check_settings, warn_unhandled
from penstock.workers.executor.attempt.child import parent as children
from penstock.workers.executor.attempt.session import import_sessions
from penstock.workers.executor.executor import Executor
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.intake import Intake
from penstock.workers.executor.limit_gate import open_gate
from penstock.workers.executor.runtime.meter import Meter
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.handlers.registry import handlers
from penstock.workers.handlers.resources import provider_modules
from penstock.workers.telemetry.metrics.registry import open_registry
from penstock.workers.telemetry.observers import close_observers, telemetry_observers
from penstock.workers.workflows.definition import check_workflows

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from penstock.workers.telemetry.metrics.worker_metrics import WorkerMetrics

log = logging.getLogger("penstock.worker")


def worker_name(engine: str) -> str:
    """`engine@host-pid-xxxx`: unique also where pids repeat, as in containers."""
    return f"{engine}@{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


class Worker:
    """Consumer, intake, executor and ledger of one process.

    Arguments:
        queues: the queues to consume.
        concurrency: attempts running at a time; None: the largest that the settings of its queues name.
        name: unique among all workers; None makes one.
        consumer: for an engine or test that brings its own.

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
    ) -> None:
        handlers.check()
        check_workflows()
        queues = sorted(set(queues))
        if consumer is None:
            check_settings(handlers, settings, queues)
        self.settings, self.engine = settings, engine
        self.name = name or worker_name(engine)
        self.queues = queues
        self.database = Database(settings.database_url)
        self.consumer = consumer or open_consumer(
            settings.broker_url,
            self.queues,
            name=self.name,
            prefix=settings.prefix,
            lease_seconds=settings.lease_seconds,
            max_message_bytes=settings.message_limit,
            lease_keeper=True,
            weights={queue: of_queue.weight for queue, of_queue in settings.queues.items()},
        )
        # A caller's own consumer may have no Redis.
        publishes = consumer is None and scheme(settings.broker_url) == "redis"
        self._changes = (
            ChangePublisher(
                settings.broker_url, prefix=settings.prefix, timeout_seconds=settings.broker_timeout_seconds
            )
            if publishes
            else None
        )
        self.registry, self._metrics = _open_metrics(settings, engine)
        counted = [self._metrics] if self._metrics is not None else []
        self._telemetry = telemetry_observers(settings, worker=self.name, engine=engine)
        self.executor = Executor(
            settings,
            self.database,
            name=self.name,
            concurrency=concurrency or max((settings.queue(queue).concurrency for queue in self.queues), default=1),
            observers=[*self._telemetry, *counted, *observers],
            changes=self._changes,
            meter=self._metrics,
            limits=open_gate(settings, self.name, handlers, queues) if consumer is None else None,
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
        import_sessions(handler for handler in handlers if handler.kind.queue in self.queues)
        heartbeats.register(
            self.database,
            self.name,
            engine=self.engine,
            queues=self.queues,
            kinds={handler.kind.name: handler.kind.queue for handler in handlers},
            lease=self.settings.lease,
        )
        warn_unhandled(handlers, self.queues, heartbeats.known_kinds(self.database))
        if self._changes is not None:
            self._changes.start()
        self.executor.start()
        self.intake.start()
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
        close_observers(self._telemetry)
        if self._changes is not None:
            self._changes.close()
        self.consumer.close()
        try:
            heartbeats.sign_off(self.database, self.name)
        except LedgerUnavailable as error:
            log.warning("%s; worker %s counts as gone when its lease has ended", error, self.name)
        self.database.close()
        log.info("worker %s has stopped", self.name)

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
        return self.executor.not_live() or self.intake.not_live()


def _open_metrics(settings: Settings, engine: str) -> tuple[CollectorRegistry | None, WorkerMetrics | None]:
    """The registry of a worker's metrics, and what counts its jobs; None: no one asks for them."""
    registry = open_registry(settings, role="worker", engine=engine)
    if registry is None:
        return None, None
    from penstock.workers.telemetry.metrics.worker_metrics import WorkerMetrics

    metrics = WorkerMetrics(engine=engine)
    registry.register(metrics)
    return registry, metrics
