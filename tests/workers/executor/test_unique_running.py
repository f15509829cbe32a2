"""Unique jobs and cancellation with workers, a dispatcher and a ledger at work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import upgraded
from support.polling import WAIT_SECONDS, until

from penstock.config.errors import DuplicateJob
from penstock.config.settings import ScheduleSettings, Settings
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.schedules.firing import fire
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.producers import JobHandle, Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job
from penstock.workers import Context, handles
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.engines.inline import Inline
from penstock.workers.engines.worker import Worker


class Only(Job, kind="ur.only", queue="ur", unique_by=("n",), unique="reject"):
    n: int
    again: bool = False


class Index(Job, kind="ur.index", queue="ur", unique="debounce", debounce=0.5):
    text: str


class Hold(Job, kind="ur.hold", queue="ur"):
    """Runs until it is cancelled, and records how it was notified."""


class HoldThread(Job, kind="ur.thread", queue="ur"): ...


class HoldChild(Job, kind="ur.child", queue="ur"):
    file: str


class Parent(Job, kind="ur.parent", queue="ur"):
    n: int


seen: list[str] = []
open_gate = threading.Event()


@handles(Only)
def only(job: Only, ctx: Context) -> None:
    seen.append(f"only {job.n}")
    if job.again:
        ctx.enqueue(Only(n=job.n))
    else:
        assert open_gate.wait(WAIT_SECONDS)


@handles(Index)
async def index(job: Index) -> None:
    seen.append(job.text)


@handles(Hold)
async def hold(job: Hold) -> None:
    import asyncio

    seen.append("starts")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise


@handles(HoldThread)
def hold_thread(job: HoldThread, ctx: Context) -> None:
    seen.append("starts")
    while not ctx.cancelled:
        time.sleep(0.005)
    seen.append("cancelled")
    ctx.check_cancelled()


@handles(HoldChild, isolate=True)
def hold_child(job: HoldChild) -> None:
    Path(job.file).write_text(str(os.getpid()))
    time.sleep(3600)


@handles(Parent)
async def parent(job: Parent, ctx: Context) -> None:
    ctx.enqueue(Only(n=job.n))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    seen.clear()
    open_gate.clear()
    yield
    open_gate.set()


@pytest.fixture
def inline() -> Iterator[Inline]:
    with Inline(queues=["ur"]) as penstock:
        yield penstock
        open_gate.set()


def of_kind(database: Database, kind: str) -> list[Any]:
    select = sa.select(jobs).where(jobs.c.kind == kind).order_by(jobs.c.id)
    return database.read(lambda connection: list(connection.execute(select)))


def test_a_unique_job_runs_once_and_its_key_is_free_when_it_has_ended(inline: Inline) -> None:
    first = inline.producer.enqueue(Only(n=1))
    until(lambda: first.status().state == "running")
    with pytest.raises(DuplicateJob):
        inline.producer.enqueue(Only(n=1))
    open_gate.set()
    assert first.wait(WAIT_SECONDS).state == "succeeded"
    assert inline.producer.enqueue(Only(n=1)).wait(WAIT_SECONDS).state == "succeeded"
    assert seen == ["only 1", "only 1"]


def test_a_burst_of_debounced_jobs_runs_once_with_the_last_payload(inline: Inline) -> None:
    began = datetime.now(UTC)
    handles_ = [inline.producer.enqueue(Index(text=str(number))) for number in range(20)]
    status = handles_[-1].wait(WAIT_SECONDS)
    assert status.started_at is not None
    assert status.started_at - began >= timedelta(seconds=0.5)
    inline.drain()
    assert seen[-1] == "19"
    # On a machine that was frozen for half a second there was a quiet period in between.
    assert len(seen) == len({handle.id for handle in handles_ if handle.status().state == "succeeded"})


def test_a_handler_enqueues_unique_jobs_and_may_enqueue_its_own_successor(inline: Inline) -> None:
    held = inline.producer.enqueue(Only(n=1))
    assert inline.producer.enqueue(Parent(n=1)).wait(WAIT_SECONDS).state == "succeeded"
    assert [row.id for row in of_kind(inline.database, "ur.only")] == [held.id]
    open_gate.set()
    assert inline.producer.enqueue(Only(n=2, again=True)).wait(WAIT_SECONDS).state == "succeeded"
    inline.drain()
    assert seen.count("only 2") == 2


def test_a_schedule_does_not_fire_a_job_whose_key_is_held(inline: Inline) -> None:
    definition = ScheduleSettings(kind="ur.only", cron="0 * * * *", payload={"n": 1}, overlap="allow")
    [rule] = read_schedules(Settings(schedules={"hourly": definition}))
    declare_schedules(inline.database, [rule])
    held = inline.producer.enqueue(Only(n=1))

    def due_now(connection: sa.Connection) -> None:
        # SQLite's clock is cut to milliseconds.
        connection.execute(sa.update(schedules).values(next_at=datetime.now(UTC) - timedelta(milliseconds=10)))

    inline.database.write(due_now)
    fire(inline.database, rule)
    [firing] = inline.database.read(lambda connection: list(connection.execute(sa.select(firings))))
    assert (firing.skipped, firing.job_id) == ("unique", held.id)
    open_gate.set()
    held.wait(WAIT_SECONDS)
    inline.database.write(due_now)
    fire(inline.database, rule)
    assert len(of_kind(inline.database, "ur.only")) == 2


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("job", [Hold(), HoldThread()])
def test_a_coroutine_is_cancelled_and_a_thread_is_notified(inline: Inline, job: Job, by_key: bool) -> None:
    handle = inline.producer.enqueue(job, key="k")
    until(lambda: seen == ["starts"])
    cancel(inline.producer, handle, by_key)
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    assert seen == ["starts", "cancelled"]


@pytest.mark.parametrize("by_key", [False, True])
def test_a_child_process_is_ended(inline: Inline, tmp_path: Path, by_key: bool) -> None:
    file = tmp_path / "pid"
    handle = inline.producer.enqueue(HoldChild(file=str(file)), key="k")
    until(lambda: file.exists() and file.read_text())
    cancel(inline.producer, handle, by_key)
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def cancel(producer: Producer, handle: JobHandle, by_key: bool) -> None:
    if by_key:
        assert producer.cancel(key="k") == [handle.id]
    else:
        assert handle.cancel() == "running"


@pytest.mark.parametrize("by_key", [False, True])
def test_a_job_cancelled_while_no_worker_is_up_never_runs(sqlite_url: str, by_key: bool) -> None:
    database, broker = Database(upgraded(sqlite_url)), MemoryBroker()
    with Producer("redis://unused", sender=broker, database_url=sqlite_url) as producer:
        handles_ = [producer.enqueue(Hold(), key="k"), producer.enqueue(Only(n=1), key="k")]
        if by_key:
            assert producer.cancel(key="k") == [handles_[1].id]
        else:
            assert [handle.cancel() for handle in handles_] == ["cancelled", "cancelled"]
        last = producer.enqueue(Index(text="last"), key="k", unique="reject")
        consumer = MemoryConsumer(broker, ["ur"])
        worker = Worker(
            Settings(database_url=sqlite_url), engine="inline", queues=["ur"], concurrency=5, consumer=consumer
        )
        worker.start()
        assert last.wait(WAIT_SECONDS).state == "succeeded"
        until(lambda: not broker.depths(["ur"])["ur"] and not consumer.unsettled)
        worker.stop()
        assert [handle.status().state for handle in handles_] == ["cancelled", "cancelled"]
    database.close()
    assert seen == ["last"]
