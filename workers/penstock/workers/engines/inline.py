"""The inline engine: producer, broker, worker, dispatcher and ledger in the caller's own process, for tests.

    with Inline() as penstock:
        handle = penstock.producer.enqueue(SendInvoice(...))
        assert handle.wait(5).state == "succeeded"

No server is needed, and a job goes the same way as on every engine: the executor over a real ledger.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.config.errors import WaitTimeout
from penstock.config.settings import Settings
from penstock.ledger.queries import jobs
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers import Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.schemas.states import FINAL, State
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.dispatcher.due_jobs import DueJobs
from penstock.workers.dispatcher.inbox import Inbox
from penstock.workers.dispatcher.limits import Pauses
from penstock.workers.dispatcher.lost_jobs import Reaper
from penstock.workers.dispatcher.schedules.service import Schedules
from penstock.workers.dispatcher.workflows.service import Workflows
from penstock.workers.engines.worker import Worker


class Inline:
    """Everything in this process, from `start` to `stop` or for a `with` block.

    Arguments:
        settings: without use of broker_url. None: the defaults, with a ledger that ends with the engine.
        queues: to consume; None: those of every kind imported by now.
        concurrency: attempts at a time.
    """

    def __init__(
        self, settings: Settings | None = None, *, queues: Iterable[str] | None = None, concurrency: int = 10
    ) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if settings is None:
            self._folder = tempfile.TemporaryDirectory(prefix="penstock-inline-")
            folder = Path(self._folder.name)
            settings = Settings(
                database_url=f"sqlite:///{folder}/ledger.db",
                storage_url=f"file:{folder}/storage",
                smtp_url=f"maildir:{folder}/mail",
                unknown_kind_grace=timedelta(),  # no other worker may know it
            )
        self.settings = settings
        self.broker = MemoryBroker()
        self.database = Database(settings.database_url)
        self.producer = Producer(
            "redis://inline",
            sender=self.broker,
            database_url=settings.database_url,
            storage_url=settings.storage_url,
        )
        if queues is None:
            queues = registry.queues()
        self._consumers = [MemoryConsumer(self.broker, queues), MemoryConsumer(self.broker, [DISPATCHER_QUEUE])]
        self.worker = Worker(
            settings,
            engine="inline",
            queues=queues,
            concurrency=concurrency,
            consumer=self._consumers[0],
        )
        self._services = [
            Inbox(self.database, self._consumers[1], settings.lease),
            (due := DueJobs(self.database, self.broker)),
            Pauses(self.database, due.wakeup),
            Schedules(self.database, settings),
            Workflows(settings, self.database),
            Reaper(self.database, settings.lease, self.worker.name),
        ]

    def start(self) -> Self:
        upgrade(self.database)
        self.worker.start()
        for service in self._services:
            service.start()
        return self

    def stop(self) -> None:
        """Drain within the settings' grace and end."""
        for service in self._services:
            service.stop()
        for service in self._services:
            service.join(10)
        self.worker.stop()
        self.producer.close()
        self.database.close()
        if self._folder is not None:
            self._folder.cleanup()

    def drain(self, timeout: float = 60.0) -> None:
        """Wait until every job that was sent has ended, delayed jobs and retries too.

        Raises:
            WaitTimeout: some have not, in `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self._idle():
            if time.monotonic() > deadline:
                raise WaitTimeout(f"jobs are still on their way after {timeout:g} s: {self._unended()}")
            time.sleep(0.005)

    def _idle(self) -> bool:
        with self.broker.changed:
            on_the_way = any(self.broker.lanes.values()) or any(consumer.unsettled for consumer in self._consumers)
        return not on_the_way and not self._unended()

    def _unended(self) -> dict[str, dict[str, int]]:
        return jobs.counts(self.database, sorted(set(State) - FINAL))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
