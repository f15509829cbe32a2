"""Waiting for jobs and watching them, with what workers push over Redis."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, date, datetime
from typing import Any

import pytest
import redis
from producers.handles.watched_jobs import NEVER, Background, Blind, Play, Sent, cues, watchers
from support.polling import WAIT_SECONDS, until, until_async

from penstock.config.errors import InvalidResult, JobFailed, NotTracked, WaitTimeout
from penstock.config.settings import Settings
from penstock.ledger.queries.status import Progress
from penstock.producers import AsyncJobHandle, AsyncProducer, Producer
from penstock.producers.handles import handles, redis_listener
from penstock.schemas.wire.ids import new_id
from penstock.workers.engines.worker import Worker


def say(name: str, what: Any) -> None:
    cues.setdefault(name, []).append(what)


@pytest.fixture
def only_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiters look when they are notified, and never by themselves."""
    for name in ("_FIRST_LOOK", "_LONGEST_LOOK", "_LOOK_WHEN_PUSHED"):
        monkeypatch.setattr(handles, name, NEVER)


@pytest.mark.usefixtures("worker", "only_pushes")
def test_a_push_ends_the_waits_of_many_threads(producer: Producer) -> None:
    sent = [producer.enqueue(Play(name=f"n{number}")) for number in range(20)]
    waits = [Background(handle.wait) for handle in [*sent, *sent]]  # two of each job
    assert not any(wait.done() for wait in waits)
    for number in range(20):
        say(f"n{number}", "end")
    assert {wait.get().state for wait in waits} == {"succeeded"}


@pytest.mark.usefixtures("only_pushes", "worker")
def test_watching_yields_each_state_and_progress_until_the_end(
    producer: Producer, client: redis.Redis, prefix: str
) -> None:
    handle = producer.handle(new_id(), "watch.play")
    seen: list[Any] = []

    def watch() -> None:
        for status in handle.watch():
            seen.append((str(status.state), status.progress))

    watched = Background(watch)
    until(lambda: watchers(client, prefix, handle.id))
    producer.enqueue(Play(name="n"), id=handle.id)
    until(lambda: seen[-1:] == [("running", None)])
    for done in (1, 2):
        say("n", done)
        until(lambda done=done: seen[-1:] == [("running", Progress(done, 9))])
    say("n", "end")
    watched.get()
    running = [("running", None), ("running", Progress(1, 9)), ("running", Progress(2, 9))]
    assert seen == [("queued", None), *running, ("succeeded", Progress(2, 9))]


@pytest.mark.usefixtures("worker", "only_pushes")
def test_coroutines_in_several_loops_wait_with_one_producer(settings: Settings) -> None:
    producer = AsyncProducer.from_settings(settings)

    async def wait_for_jobs(loop: int) -> list[str]:
        async def one(number: int) -> list[str]:
            handle = await producer.enqueue(Play(name=f"{loop}-{number}"))
            if number == 0:
                say(f"{loop}-{number}", 5)
            say(f"{loop}-{number}", "end")
            return [str(status.state) async for status in handle.watch()]

        results = await asyncio.gather(*(one(number) for number in range(10)))
        await producer.close()
        return [states[-1] for states in results]

    loops = [Background(lambda loop=loop: asyncio.run(wait_for_jobs(loop))) for loop in range(3)]
    assert [loop.get() for loop in loops] == [["succeeded"] * 10] * 3
    assert asyncio.run(wait_for_jobs(3)) == ["succeeded"] * 10


@pytest.mark.usefixtures("worker")
def test_a_watcher_that_stops_early_is_forgotten(settings: Settings, client: redis.Redis, prefix: str) -> None:
    async def wait_for_jobs() -> None:
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

    asyncio.run(asyncio.wait_for(wait_for_jobs(), WAIT_SECONDS))


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
    monkeypatch.setattr(redis_listener, "_RENEW_SECONDS", 0.02)

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "penstock-subscriptions"]

    for name in ("first", "second"):
        wait = Background(producer.enqueue(Play(name=name)).wait)
        until(threads)
        say(name, "end")
        wait.get()
        until(lambda: not threads())


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
    with pytest.raises(InvalidResult, match=r"is not a valid int"):
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
