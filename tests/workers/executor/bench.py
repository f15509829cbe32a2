"""Jobs with handlers for the tests of the executor, and workers on a broker in memory that run them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel
from support.ledgers import upgraded
from support.polling import WAIT_SECONDS, until

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers import Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, RetryPolicy, State
from penstock.workers import Context, Discard, Permanent, Retry, Snooze, handles, provides
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.engines.worker import Worker


class Add(Job, kind="ex.add", queue="ex"):
    a: int
    b: int


class Sum(BaseModel):
    sum: int


class Do(Job, kind="ex.do", queue="ex", retry=RetryPolicy(max_attempts=3, give_up_on=LookupError)):
    what: str


class DoInThread(Job, kind="ex.thread", queue="ex", timeout=30):
    what: str


class DoIsolated(Job, kind="ex.child", queue="ex", timeout=20):
    what: str


class Brief(Job, kind="ex.brief", queue="ex", timeout=0.2):
    mode: str


class Untracked(Job, kind="ex.untracked", queue="ex", track=False):
    what: str = "fine"


class Once(Job, kind="ex.once", queue="ex", delivery="once"):
    name: str


class AtMostOnce(Job, kind="ex.atmostonce", queue="ex", delivery="at_most_once"):
    name: str


class Seen(Job, kind="ex.seen", queue="ex"):
    name: str


class Write(Job, kind="ex.write", queue="ex"):
    what: str


class WriteAsync(Job, kind="ex.writeasync", queue="ex"):
    what: str


class Ledge:
    """A resource that counts how often it was opened and closed."""

    opened = closed = 0


@provides
def open_ledge(settings: Settings) -> Iterator[Ledge]:
    Ledge.opened += 1
    yield Ledge()
    Ledge.closed += 1


seen: list[str] = []


gate = threading.Event()


@handles(Add)
async def add(job: Add, ctx: Context) -> Sum:
    ctx.progress(1, 2, "half way")
    return Sum(sum=job.a + job.b)


@handles(Do)
async def do(job: Do, ctx: Context, ledge: Ledge) -> Any:
    match job.what:
        case "fail":
            raise ValueError("boom")
        case "lookup":
            raise KeyError("gone")
        case "permanent":
            raise Permanent("will not mend")
        case "retry":
            return Retry(after=3600, reason="come back later")
        case "snooze":
            return Snooze(timedelta(hours=1), reason="not yet")
        case "discard":
            return Discard("nothing to do")
        case "exit":
            raise SystemExit(3)
        case "unserialisable":
            return object()
        case "enqueue":
            ctx.enqueue(Add(a=1, b=1))
        case "enqueue and fail":
            ctx.enqueue(Add(a=1, b=1))
            raise ValueError("boom")
        case "sleep":
            await asyncio.sleep(3600)
        case "progress":
            ctx.progress(1, 3, "asleep")
            await asyncio.sleep(3600)
        case "ledge":
            return type(ledge).__name__
    return None


@handles(DoInThread)
def do_in_thread(job: DoInThread, ctx: Context) -> str:
    match job.what:
        case "loop":
            while not ctx.cancelled:
                time.sleep(0.005)
            ctx.check_cancelled()
        case "gate":
            assert gate.wait(WAIT_SECONDS)
    return threading.current_thread().name


@handles(DoIsolated, isolate=True, memory_bytes=300_000_000)
def do_isolated(job: DoIsolated, ctx: Context) -> dict[str, int]:
    ctx.progress(1, 1, "in a child")
    match job.what:
        case "memory":
            bytearray(2_000_000_000)
        case "die":
            os.kill(os.getpid(), 9)
        case "fail":
            raise ValueError("boom in a child")
        case "sleep":
            time.sleep(3600)
    return {"pid": os.getpid()}


@handles(Brief)
async def brief(job: Brief) -> None:
    await asyncio.sleep(3600)


@handles(Untracked)
async def untracked(job: Untracked) -> None:
    if job.what == "fail":
        raise ValueError("boom")


@handles(Once)
async def once(job: Once) -> None:
    seen.append(job.name)


@handles(AtMostOnce)
async def at_most_once(job: AtMostOnce) -> None:
    seen.append(job.name)
    await asyncio.sleep(3600)


@handles(Seen)
async def note(job: Seen) -> None:
    seen.append(job.name)


INSERT = sa.text("INSERT INTO effects VALUES (:job, :attempt)")


@handles(Write)
def write(job: Write, ctx: Context) -> None:
    if job.what == "gate":
        assert gate.wait(WAIT_SECONDS)
    ctx.session.execute(INSERT, {"job": ctx.job_id, "attempt": ctx.attempt})
    if job.what == "fail":
        raise ValueError("boom")


@handles(WriteAsync)
async def write_async(job: WriteAsync, ctx: Context) -> None:
    await ctx.session.execute(INSERT, {"job": ctx.job_id, "attempt": ctx.attempt})
    if job.what == "fail":
        raise ValueError("boom")


@contextlib.contextmanager
def open_bench(settings: Settings) -> Iterator[Bench]:
    """A bench with nothing of earlier tests; its workers are stopped at the end."""
    seen.clear()
    gate.clear()
    bench = Bench(settings)
    yield bench
    gate.set()
    for worker in bench.workers:
        worker.stop()
    bench.producer.close()
    bench.database.close()


class Bench:
    """A worker, its broker and its producer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(upgraded(settings.database_url))
        self.broker = MemoryBroker()
        self.producer = Producer("redis://unused", sender=self.broker, database_url=settings.database_url)
        self.workers: list[Worker] = []

    def worker(self, concurrency: int = 10, start: bool = True, engine: str = "inline") -> Worker:
        worker = Worker(
            self.settings,
            engine=engine,
            queues=["ex"],
            concurrency=concurrency,
            consumer=MemoryConsumer(self.broker, ["ex"]),
        )
        self.workers.append(worker)
        if start:
            worker.start()
        return worker

    def run(self, job: Job, **options: Any) -> Any:
        """Status of a job once it is no longer queued or running."""
        handle = self.producer.enqueue(job, **options)
        until(lambda: handle.status().state not in (State.QUEUED, State.RUNNING))
        return handle.status()

    def rows(self, table: sa.FromClause, *where: Any) -> list[Any]:
        return list(self.database.read(lambda connection: connection.execute(sa.select(table).where(*where)).all()))

    def idle(self) -> bool:
        waiting = self.broker.depths(["ex"])["ex"]
        return not waiting and not any(worker.consumer.unsettled for worker in self.workers)  # type: ignore[attr-defined]
