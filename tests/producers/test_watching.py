"""Waiting for jobs and watching them, with what workers push over Redis."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import BaseModel, ConfigDict
from support.ledgers import claimed, end, message
from support.polling import WAIT_SECONDS, until, until_async

from penstock.config.errors import InvalidResult, JobFailed, NotTracked, WaitTimeout, WatchClosed
from penstock.config.settings import Settings
from penstock.ledger.queries.status import Progress
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers import AsyncJobHandle, AsyncProducer, Producer
from penstock.producers.handles import handles, subscriptions
from penstock.producers.handles.connections import LedgerLink
from penstock.producers.handles.subscriptions import AsyncWaiter
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, RetryPolicy
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context
from penstock.workers import handles as runs
from penstock.workers.engines.worker import Worker
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.local.up.redis_server import RedisServer

NEVER = 3600.0


class Play(Job, kind="watch.play", queue="watched", retry=RetryPolicy(max_attempts=1)):
    """Does what `say` says to it."""

    name: str = ""


class Blind(Job, kind="watch.blind", queue="watched", track=False): ...


class Sent(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date
    parts: tuple[int, ...]


_said: dict[str, list[Any]] = {}


def say(name: str, what: Any) -> None:
    _said.setdefault(name, []).append(what)


@runs(Play)
async def play(job: Play, ctx: Context) -> Any:
    while job.name:
        await until_async(lambda: _said.get(job.name))
        match _said[job.name].pop(0):
            case int(done):
                ctx.progress(done, 9)
            case "fail":
                raise ValueError("boom")
            case "end":
                break
    return Sent(day=date(2026, 2, 1), parts=(1, 2))


@runs(Blind)
async def blind(job: Blind) -> None: ...


@pytest.fixture
def settings(redis_url: str, prefix: str, tmp_path: Path) -> Settings:
    _said.clear()
    url = f"sqlite:///{tmp_path}/ledger.db"
    database = Database(url)
    upgrade(database)
    database.close()
    return Settings(broker_url=redis_url, prefix=prefix, database_url=url, storage_url=f"file:{tmp_path}/storage")


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker(settings, engine="inline", queues=["watched"], concurrency=50)
    worker.start()
    yield worker
    worker.stop(0)


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    with Producer.from_settings(settings) as producer:
        yield producer


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def only_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks when it is told to, and never by itself."""
    for name in ("_FIRST_LOOK", "_LONGEST_LOOK", "_LOOK_WHEN_PUSHED"):
        monkeypatch.setattr(handles, name, NEVER)


class Background:
    """Something in a thread, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._value, self._error = work, None, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error

    def done(self) -> bool:
        return not self._thread.is_alive()

    def get(self) -> Any:
        self._thread.join(WAIT_SECONDS)
        assert self.done(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._value


def watchers(client: redis.Redis, prefix: str, job_id: str) -> int:
    """How many connections have subscribed to a job, once it is entered as watched; else 0."""
    [(_, count)] = client.pubsub_numsub(f"{prefix}:job:{job_id}")
    return int(count) if client.zscore(f"{prefix}:watched", job_id) is not None else 0


@pytest.mark.usefixtures("worker", "only_pushes")
def test_a_push_ends_the_waits_of_many_threads(producer: Producer) -> None:
    sent = [producer.enqueue(Play(name=f"n{number}")) for number in range(20)]
    waits = [Background(handle.wait) for handle in [*sent, *sent]]  # two of each job
    assert not any(wait.done() for wait in waits)
    for number in range(20):
        say(f"n{number}", "end")
    assert {wait.get().state for wait in waits} == {"succeeded"}


@pytest.mark.usefixtures("only_pushes")
def test_watching_yields_each_state_and_progress_until_the_end(
    producer: Producer, worker: Worker, client: redis.Redis, prefix: str
) -> None:
    handle = producer.handle(new_id(), "watch.play")
    seen: list[Any] = []

    def watch() -> None:
        for status in handle.watch():
            seen.append((str(status.state), status.progress))

    watched = Background(watch)
    until(lambda: watchers(client, prefix, handle.id) and worker._changes and worker._changes.has_subscribers)
    producer.enqueue(Play(name="n"), id=handle.id)
    until(lambda: seen[-1] == ("running", None))
    for done in (1, 2):
        say("n", done)
        until(lambda done=done: seen[-1] == ("running", Progress(done, 9)))
    say("n", "end")
    watched.get()
    running = [("running", None), ("running", Progress(1, 9)), ("running", Progress(2, 9))]
    assert seen == [("queued", None), *running, ("succeeded", Progress(2, 9))]


@pytest.mark.usefixtures("worker", "only_pushes")
def test_coroutines_in_several_loops_wait_with_one_producer(settings: Settings) -> None:
    producer = AsyncProducer.from_settings(settings)

    async def work(loop: int) -> list[str]:
        async def one(number: int) -> list[str]:
            handle = await producer.enqueue(Play(name=f"{loop}-{number}"))
            if number == 0:
                say(f"{loop}-{number}", 5)
            say(f"{loop}-{number}", "end")
            return [str(status.state) async for status in handle.watch()]

        results = await asyncio.gather(*(one(number) for number in range(10)))
        await producer.close()
        return [states[-1] for states in results]

    loops = [Background(lambda loop=loop: asyncio.run(work(loop))) for loop in range(3)]
    assert [loop.get() for loop in loops] == [["succeeded"] * 10] * 3
    assert asyncio.run(work(3)) == ["succeeded"] * 10


@pytest.mark.usefixtures("worker")
def test_a_watcher_that_stops_early_is_forgotten(settings: Settings, client: redis.Redis, prefix: str) -> None:
    async def work() -> None:
        async with AsyncProducer.from_settings(settings) as producer:
            handle = await producer.enqueue(Play(name="n"))
            watched = handle.watch()
            async for status in watched:
                if status.state == "running":
                    break
            await watched.aclose()  # type: ignore[attr-defined]
            await until_async(lambda: not watchers(client, prefix, handle.id))
            waiting = asyncio.create_task(handle.wait())
            await until_async(lambda: watchers(client, prefix, handle.id))
            waiting.cancel()
            await until_async(lambda: not watchers(client, prefix, handle.id))
            say("n", "end")
            assert (await handle.wait()).state == "succeeded"

    asyncio.run(asyncio.wait_for(work(), WAIT_SECONDS))


@pytest.mark.usefixtures("worker")
def test_changes_of_unwatched_jobs_are_not_published(producer: Producer, client: redis.Redis, prefix: str) -> None:
    with client.pubsub() as pubsub:
        pubsub.psubscribe(f"{prefix}:job:*")
        unwatched = producer.enqueue_many([Play() for _ in range(20)])
        until(lambda: all(handle.status().final for handle in unwatched))
        watched = producer.enqueue(Play(name="n"))
        wait = Background(watched.wait)
        until(lambda: watchers(client, prefix, watched.id))
        other = producer.enqueue(Play())
        until(lambda: other.status().final)
        say("n", "end")
        wait.get()
        items = until(lambda: [item for item in [pubsub.get_message()] if item and item["type"] == "pmessage"])
    assert items[0]["channel"].decode() == f"{prefix}:job:{watched.id}"


@pytest.mark.usefixtures("only_pushes")
def test_the_thread_runs_only_while_a_job_is_watched(
    producer: Producer, settings: Settings, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "_RENEW_SECONDS", 0.02)

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "penstock-watching"]

    for name in ("first", "second"):
        wait = Background(producer.enqueue(Play(name=name)).wait)
        until(threads)
        say(name, "end")
        wait.get()
        until(lambda: not threads())


def test_the_ledger_is_polled_without_redis_and_pushes_come_back(
    settings: Settings,
    prefix: str,
    own_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = Database(settings.database_url)
    with redis.Redis.from_url(own_redis.url) as client:
        settings = settings.model_copy(update={"broker_url": own_redis.url, "broker_timeout_seconds": 1.0})
        with Producer.from_settings(settings) as producer:
            first, second, third = (message(Play()) for _ in range(3))
            claims = [claimed(database, sent) for sent in (first, second, third)]
            cut = Background(producer.handle(first.id).wait)
            until(lambda: watchers(client, prefix, first.id))
            own_redis.kill()
            end(database, claims[0], Outcome.SUCCEEDED, result="1")
            assert cut.get().result == 1
            away = Background(producer.handle(second.id).wait)
            end(database, claims[1], Outcome.SUCCEEDED, result="2")
            assert away.get().result == 2
            for name in ("_FIRST_LOOK", "_LONGEST_LOOK", "_LOOK_WHEN_PUSHED"):
                monkeypatch.setattr(handles, name, NEVER)
            waiting = Background(producer.handle(third.id).wait)
            own_redis.start()
            until(lambda: watchers(client, prefix, third.id))
            end(database, claims[2], Outcome.SUCCEEDED, result="3")
            changes = ChangePublisher(own_redis.url, prefix=prefix, timeout_seconds=1)
            changes.start()
            changes.publish([third.id])
            assert waiting.get().result == 3
            changes.close()
    database.close()
    assert "looked up again and again" in caplog.text


@pytest.mark.usefixtures("worker")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_waits_as_its_parent_does(settings: Settings, tmp_path: Path) -> None:
    script = tmp_path / "forking.py"
    script.write_text("""
import os, signal
from penstock.producers import Producer, handles
from penstock.schemas import Job

class Play(Job, kind="watch.play", queue="watched"):
    name: str = ""

handles._FIRST_LOOK = handles._LONGEST_LOOK = handles._LOOK_WHEN_PUSHED = 3600
signal.alarm(100)
producer = Producer.from_settings()
producer.enqueue(Play()).wait()
before = producer.enqueue(Play(name="never"))
watched = iter(before.watch())
next(watched)
child = os.fork()
for _ in range(3):
    assert producer.enqueue(Play()).wait().state == "succeeded"
if child == 0:
    producer.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert producer.enqueue(Play()).wait().state == "succeeded"
producer.close()
""")
    env = os.environ | {
        "PENSTOCK_BROKER_URL": settings.broker_url,
        "PENSTOCK_DATABASE_URL": settings.database_url,
        "PENSTOCK_PREFIX": settings.prefix,
    }
    done = subprocess.run([sys.executable, script], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(params=["redis", "memory"])
def either(request: pytest.FixtureRequest, settings: Settings) -> dict[str, Any]:
    """Options of a producer with pushes, and of one without."""
    options: dict[str, Any] = {"database_url": settings.database_url, "prefix": settings.prefix}
    return options if request.param == "redis" else options | {"sender": MemoryBroker()}


def test_closing_a_producer_ends_its_waits(settings: Settings, either: dict[str, Any]) -> None:
    producer = Producer(settings.broker_url, **either)
    waits = [Background(producer.enqueue(Play()).wait) for _ in range(3)]
    until(lambda: len(producer._ledger.watching()._waiters) == 3)
    producer.close()
    for wait in waits:
        with pytest.raises(WatchClosed, match="was closed"):
            wait.get()
    with pytest.raises(WaitTimeout, match=r"queued after 0\.01 s"):
        producer.enqueue(Play()).wait(0.01)  # it opens anew
    producer.close()


def test_a_waiter_does_not_reopen_a_ledger_that_was_closed_meanwhile(settings: Settings) -> None:
    link = LedgerLink(settings.database_url)
    waiter = link.watching().join("id")
    link.open(waiter)
    link.close()
    with pytest.raises(WatchClosed, match="job id"):
        link.open(waiter)
    assert link._database is None

    async def left() -> AsyncWaiter:
        waiter = link.async_watching().join("id")
        link.async_watching().leave(waiter)
        return waiter

    with pytest.raises(WatchClosed):
        link.open(asyncio.run(left()))
    assert link._database is None


def test_closing_an_async_producer_ends_its_waits(settings: Settings) -> None:
    async def work() -> None:
        producer = AsyncProducer.from_settings(settings)
        waits = [asyncio.create_task((await producer.enqueue(Play())).wait()) for _ in range(3)]
        here = producer._ledger.async_watching()
        await until_async(lambda: here._loops and len(here._loops[asyncio.get_running_loop()]._waiters) == 3)
        await producer.close()
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(error) for error in results] == [WatchClosed] * 3
        with pytest.raises(WaitTimeout):
            await (await producer.enqueue(Play())).wait(0.01)
        await producer.close()

    asyncio.run(asyncio.wait_for(work(), WAIT_SECONDS))


def test_waiting_for_an_untracked_kind_is_refused_at_once(producer: Producer) -> None:
    handle = producer.enqueue(Blind())
    for call in (handle.wait, handle.result, handle.watch):
        with pytest.raises(NotTracked, match=r"watch\.blind.*track=False"):
            call()
    assert handle.status().state == "queued"
    awaited = AsyncJobHandle(handle.id, "watch.blind", "watched", producer._ledger)
    with pytest.raises(NotTracked):
        asyncio.run(awaited.wait())


@pytest.mark.usefixtures("worker")
def test_a_result_comes_as_its_model_if_asked_for(producer: Producer, settings: Settings) -> None:
    handle = producer.enqueue(Play())
    assert handle.result(WAIT_SECONDS) == {"day": "2026-02-01", "parts": [1, 2]}
    assert handle.result(as_type=Sent) == Sent(day=date(2026, 2, 1), parts=(1, 2))
    with pytest.raises(InvalidResult, match=r"no int"):
        handle.result(as_type=int)

    async def again() -> Sent:
        async with AsyncProducer.from_settings(settings) as other:
            return await other.handle(handle.id).result(WAIT_SECONDS, as_type=Sent)

    assert asyncio.run(again()).parts == (1, 2)


@pytest.mark.usefixtures("worker")
def test_a_job_that_failed_says_so_instead_of_a_result(producer: Producer) -> None:
    handle = producer.enqueue(Play(name="n"))
    say("n", "fail")
    with pytest.raises(JobFailed, match="ValueError: boom") as caught:
        handle.result(WAIT_SECONDS)
    assert (caught.value.job_id, caught.value.state, caught.value.error) == (handle.id, "dead", "ValueError: boom")


def test_time_runs_out_for_watching_as_a_whole(producer: Producer) -> None:
    before = datetime.now(UTC)
    with pytest.raises(WaitTimeout, match=r"queued after 0\.2 s"):
        list(producer.enqueue(Play()).watch(0.2))
    assert (datetime.now(UTC) - before).total_seconds() >= 0.2
