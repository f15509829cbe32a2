"""Waits without Redis, in forked processes, and of producers that are closed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from producers.handles.watched_jobs import NEVER, Background, Play, watchers
from support.ledgers import claimed, end, message
from support.polling import WAIT_SECONDS, until, until_async

from penstock.config.errors import WaitTimeout, WatchClosed
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers import AsyncProducer, Producer
from penstock.producers.handles import handles
from penstock.producers.handles.connections import LedgerConnections
from penstock.producers.handles.waiters import AsyncWaiter
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.schemas import Outcome
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.local.up.redis_server import RedisServer


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
            second_wait = Background(producer.handle(second.id).wait)
            end(database, claims[1], Outcome.SUCCEEDED, result="2")
            assert second_wait.get().result == 2
            for name in ("_FIRST_LOOK", "_LONGEST_LOOK", "_LOOK_WHEN_PUSHED"):
                monkeypatch.setattr(handles, name, NEVER)
            waiting = Background(producer.handle(third.id).wait)
            own_redis.start()
            until(lambda: watchers(client, prefix, third.id))
            end(database, claims[2], Outcome.SUCCEEDED, result="3")
            changes = ChangePublisher(RedisConnections(own_redis.url, timeout_seconds=1), prefix=prefix)
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
    until(lambda: len(producer._ledger.subscriptions()._waiters) == 3)
    producer.close()
    for wait in waits:
        with pytest.raises(WatchClosed, match="was closed"):
            wait.get()
    with pytest.raises(WaitTimeout, match=r"queued after 0\.01 s"):
        producer.enqueue(Play()).wait(0.01)  # it opens again
    producer.close()


def test_a_waiter_does_not_reopen_a_ledger_that_was_closed_meanwhile(settings: Settings) -> None:
    link = LedgerConnections(settings.database_url)
    waiter = link.subscriptions().subscribe("id")
    link.open(waiter)
    link.close()
    with pytest.raises(WatchClosed, match="job id"):
        link.open(waiter)
    assert link._database is None

    async def left() -> AsyncWaiter:
        waiter = link.async_subscriptions().subscribe("id")
        link.async_subscriptions().unsubscribe(waiter)
        return waiter

    with pytest.raises(WatchClosed):
        link.open(asyncio.run(left()))
    assert link._database is None


def test_closing_an_async_producer_ends_its_waits(settings: Settings) -> None:
    async def wait_and_close() -> None:
        producer = AsyncProducer.from_settings(settings)
        waits = [asyncio.create_task((await producer.enqueue(Play())).wait()) for _ in range(3)]
        here = producer._ledger.async_subscriptions()
        await until_async(lambda: here._loops and len(here._loops[asyncio.get_running_loop()]._waiters) == 3)
        await producer.close()
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(error) for error in results] == [WatchClosed] * 3
        with pytest.raises(WaitTimeout):
            await (await producer.enqueue(Play())).wait(0.01)
        await producer.close()

    asyncio.run(asyncio.wait_for(wait_and_close(), WAIT_SECONDS))
