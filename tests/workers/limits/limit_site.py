"""A dispatcher and workers in this process, over real servers, and jobs that note when they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from support.ledgers import upgraded
from support.polling import until

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.producers import JobHandle, Producer
from penstock.producers.limits import open_store
from penstock.producers.limits.store import LimitStore
from penstock.producers.senders.redis.protocol import pack
from penstock.schemas import Concurrency, Job, Rate
from penstock.workers import handles
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.engines.worker import Worker

LEASE_SECONDS = 6.0


class Call(Job, kind="limits.call", queue="calls", limits=[Concurrency(2, by="tenant")]):
    n: int = 0
    until_go: bool = False


class One(Job, kind="limits.one", queue="calls", limits=[Concurrency(1)]):
    """A job that runs for so long, or until the book says go."""

    n: int = 0
    until_go: bool = False
    seconds: float = 0.0


class Paced(Job, kind="limits.paced", queue="calls", limits=[Rate(10, per=1)]):
    n: int = 0


class Rare(Job, kind="limits.rare", queue="calls", limits=[Rate(1, per=60)]): ...


class Both(Job, kind="limits.both", queue="calls", limits=[Concurrency(2, by="queue"), Rate(20, per=1, by="host")]):
    host: str = "a"
    seconds: float = 0.0


class Free(Job, kind="limits.free", queue="calls"):
    n: int = 0


class Book:
    """Record of runs: when, and next to how many."""

    def __init__(self) -> None:
        self.started: list[tuple[float, Job]] = []
        self.ended = 0
        self.go = False
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}

    async def note(self, job: Job, share: str, seconds: float = 0.0, *, until_go: bool = False) -> None:
        self.started.append((time.monotonic(), job))
        self.now[share] = self.now.get(share, 0) + 1
        self.most[share] = max(self.most.get(share, 0), self.now[share])
        await asyncio.sleep(seconds)
        while until_go and not self.go:  # noqa: ASYNC110  # set by another thread
            await asyncio.sleep(0.005)
        self.now[share] -= 1
        self.ended += 1


class Pages:
    """The book of the test that runs."""

    book = Book()


@handles(Call)
async def call(job: Call) -> None:
    await Pages.book.note(job, "call", until_go=job.until_go)


@handles(One)
async def one(job: One) -> None:
    await Pages.book.note(job, "one", job.seconds, until_go=job.until_go)


@handles(Paced)
async def paced(job: Paced) -> None:
    await Pages.book.note(job, "paced")


@handles(Rare)
async def rare(job: Rare) -> None:
    await Pages.book.note(job, "rare")


@handles(Both)
async def both(job: Both) -> None:
    await Pages.book.note(job, "both", job.seconds)


@handles(Free)
async def free(job: Free) -> None:
    await Pages.book.note(job, "free")


class Site:
    """All of it, to be started part by part."""

    def __init__(self, folder: Path, redis_url: str, prefix: str, **settings: Any) -> None:
        options: dict[str, Any] = {
            "broker_url": redis_url,
            "database_url": f"sqlite:///{folder}/ledger.db",
            "storage_url": f"file:{folder}/storage",
            "prefix": prefix,
            "lease_seconds": LEASE_SECONDS,
            "broker_timeout_seconds": 2.0,
            "grace_seconds": 5.0,
            "stock_queues": (),
        }
        self.settings = Settings(**(options | settings))
        self.database = Database(upgraded(self.settings.database_url))
        self.producer = Producer.from_settings(self.settings)
        self.store: LimitStore = open_store(self.settings)  # type: ignore[assignment]
        # As if a worker had been here long ago: the first job need not wait as on a Redis that is new.
        self.store._connections.execute(pack("SET", f"{prefix}:limits:asked", 0))
        self.book = Pages.book = Book()
        self.handles: list[JobHandle] = []
        self.workers: list[Worker] = []
        self.dispatchers: list[Dispatcher] = []

    def start(self, workers: int = 2, concurrency: int = 20) -> Site:
        dispatcher = Dispatcher(self.settings)
        dispatcher.start()
        self.dispatchers.append(dispatcher)
        for _ in range(workers):
            worker = Worker(self.settings, engine="celery", queues=["calls"], concurrency=concurrency)
            worker.start()
            self.workers.append(worker)
        return self

    def enqueue(self, all_of: Sequence[Job], **options: Any) -> list[JobHandle]:
        handles = (
            [self.producer.enqueue(job, **options) for job in all_of]
            if options
            else self.producer.enqueue_many(list(all_of))
        )
        self.handles += handles
        return handles

    def until_ended(self, count: int) -> None:
        until(lambda: self.book.ended >= count, f"the end of {count} jobs ({self.book.ended} by now)")

    def states(self) -> dict[str, int]:
        count = sa.select(jobs.c.state, sa.func.count().label("jobs")).group_by(jobs.c.state)
        return self.database.read(lambda connection: {row.state: row.jobs for row in connection.execute(count)})

    def row(self, job_id: str) -> Any:
        select = sa.select(jobs).where(jobs.c.id == job_id)
        return self.database.read(lambda connection: connection.execute(select).first())

    def stop(self) -> None:
        self.book.go = True
        for worker in self.workers:
            worker.stop()
        for dispatcher in self.dispatchers:
            dispatcher.stop()
        self.producer.close()
        self.store.close()
        self.database.close()
