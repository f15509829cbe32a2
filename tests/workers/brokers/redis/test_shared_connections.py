"""Shared connection to Redis for all threads of a worker, and another for a thread that would have to wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from support.polling import WAIT_SECONDS, until

from penstock.producers.senders.redis import connections as module
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack


@pytest.fixture
def connections(redis_url: str, prefix: str) -> Iterator[RedisConnections]:
    connections = RedisConnections(redis_url, timeout_seconds=WAIT_SECONDS, shared=True, name=f"a {prefix}")
    yield connections
    connections.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def ids(client: redis.Redis, prefix: str) -> set[str]:
    return {each["id"] for each in client.client_list() if each["name"] == f"a_{prefix}"}


def test_threads_take_turns(
    connections: RedisConnections,
    threads: ThreadPoolExecutor,
    client: redis.Redis,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", WAIT_SECONDS)
    calls = [threads.submit(connections.execute, pack("CLIENT", "ID")) for _ in range(100)]
    used = {str(call.result(WAIT_SECONDS)[0]) for call in calls}
    assert used == ids(client, prefix)
    assert len(used) == 1


def test_a_thread_does_not_wait_for_long_behind_a_connection_that_is_silent(
    connections: RedisConnections, threads: ThreadPoolExecutor, client: redis.Redis, prefix: str
) -> None:
    """A lease is renewed on another connection, which is closed then."""
    silent = threads.submit(connections.execute, pack("BLPOP", f"{prefix}:never", 0))
    until(lambda: len(ids(client, prefix)) == 1, "the call that has no answer")
    for _ in range(3):
        assert connections.execute(pack("PING")) == [b"PONG"]
    assert not silent.done()
    assert len(ids(client, prefix)) == 2
    client.lpush(f"{prefix}:never", "x")
    assert silent.result(WAIT_SECONDS) == [[f"{prefix}:never".encode(), b"x"]]
    until(lambda: len(ids(client, prefix)) == 1)
