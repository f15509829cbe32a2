"""`Runtime`: the parts of one worker, made in one place."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.schemas.jobs.kind import Registry
from penstock.workers.executor.followups.celery_canvas import CeleryCanvas
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.followups.webhooks import OutgoingWebhooks
from penstock.workers.executor.runtime.capacity import Capacity
from penstock.workers.executor.runtime.handler_threads import HandlerThreads
from penstock.workers.executor.runtime.io_threads import IoThreads
from penstock.workers.executor.runtime.loop_thread import LoopThread, Tasks
from penstock.workers.executor.runtime.meter import Meter
from penstock.workers.executor.runtime.observers import Observer, Observers
from penstock.workers.executor.runtime.orders import Orders
from penstock.workers.executor.runtime.rates import RateCounter
from penstock.workers.handlers.django_project import is_set_up, old_connections_closed
from penstock.workers.handlers.registry import Handlers
from penstock.workers.handlers.resources import Resources

log = logging.getLogger("penstock.executor")

_MOST_OTHER_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Of `asyncio.to_thread`, as in asyncio's own default."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that the stations of a job's way share.

    Attributes:
        name: the worker's, under which it holds claims.
        loop, tasks: every station runs on this loop; its tasks are kept until they end.
        io: the threads for calls to the ledger and the broker.
        threads: run plain handlers, and calls to the storage.
        canvas: makes the callbacks, errbacks and chains of an unmodified Celery client.
        webhooks: makes outgoing webhooks; None: no hook has an address.
        changes: notifies subscribers of changed jobs; None: they poll.
        meter: measures the steps.
        rates: counts attempts for the ledger and the meter.
        orders: what operators tell the worker.
    """

    settings: Settings
    database: Database
    name: str
    handlers: Handlers
    registry: Registry
    observers: Observers
    loop: LoopThread
    tasks: Tasks
    capacity: Capacity
    io: IoThreads
    threads: HandlerThreads
    resources: Resources
    canvas: CeleryCanvas
    webhooks: OutgoingWebhooks | None
    changes: ChangePublisher | None
    meter: Meter
    rates: RateCounter
    orders: Orders

    def close(self) -> None:
        """End the threads, when the loop has nothing more to do."""
        self.loop.stop()
        self.io.close()
        self.threads.shutdown()


def make_runtime(
    settings: Settings,
    database: Database,
    *,
    name: str,
    concurrency: int,
    observers: Sequence[Observer],
    changes: ChangePublisher | None,
    handlers: Handlers,
    registry: Registry,
    meter: Meter | None = None,
    orders: Orders | None = None,
) -> Runtime:
    """The runtime of a worker; its loop is not started yet."""
    capacity = Capacity(concurrency)
    meter = meter or Meter()
    around = old_connections_closed if is_set_up() else None
    return Runtime(
        settings=settings,
        database=database,
        name=name,
        handlers=handlers,
        registry=registry,
        observers=Observers(observers),
        loop=LoopThread("penstock loop", HandlerThreads(f"{name} to_thread", _MOST_OTHER_THREADS, around)),
        tasks=Tasks(log),
        capacity=capacity,
        io=IoThreads(name, capacity, meter),
        # As many as there are attempts, which `concurrency` bounds. One that ignored its timeout keeps its thread, not
        # its slot.
        threads=HandlerThreads(f"{name} handler", around=around),
        resources=Resources(settings, {Database: database}),
        canvas=CeleryCanvas(settings, registry),
        webhooks=OutgoingWebhooks(settings) or None,
        changes=changes,
        meter=meter,
        rates=RateCounter(meter),
        orders=orders or Orders(),
    )
