"""Particular to Redis Streams: leases, take-overs, outages."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from support.brokers import envelope, fetch, ids
from support.polling import until

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders import Sender
from penstock.producers.senders.redis.sender import AsyncRedisSender, lane_key, lane_keys
from penstock.workers.brokers import Consumer
from penstock.workers.brokers.redis import consumer as consumers
from penstock.workers.local.up.redis_server import RedisServer

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]
LEASE = 0.6

WORKER = """
import sys, time
from penstock.workers.brokers import open_consumer
url, prefix, lease, limit = sys.argv[1:]
consumer = open_consumer(url, ["emails"], name="doomed@test-0", prefix=prefix, lease_seconds=float(lease))
consumer.open()
found = []
while not found:
    found = consumer.fetch(int(limit), 1)
print(*[delivery.envelope.id for delivery in found], flush=True)
time.sleep(600)
"""


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def doomed(redis_url: str, prefix: str, closing: ExitStack) -> Callable[[int], subprocess.Popen[str]]:
    """Starts a worker process that holds up to `limit` deliveries until it is killed."""

    def start(limit: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, redis_url, prefix, str(LEASE), str(limit)]
        process = closing.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        closing.callback(process.kill)
        assert process.stdout is not None
        assert len(process.stdout.readline().split()) == limit
        return process

    return start


def pending(client: redis.Redis, prefix: str) -> int:
    return sum(int(client.xpending(key, "workers")["pending"]) for key in lane_keys(prefix, "emails"))


def test_the_deliveries_of_a_killed_worker_are_taken_over(
    redis_url: str,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
    doomed: Callable[[int], subprocess.Popen[str]],
) -> None:
    make_sender(redis_url).send([envelope(str(i), priority="low") for i in range(10)])
    doomed(10).kill()
    consumer = make_consumer(redis_url, lease_seconds=LEASE)
    seen = []
    while len(seen) < 10:
        deliveries = consumer.fetch(4, 5)
        assert len(deliveries) <= 4  # a take-over respects the limit
        assert {delivery.deliveries for delivery in deliveries} <= {2}
        seen += ids(deliveries)
        consumer.ack(deliveries)
    assert seen == [str(i) for i in range(10)]


def test_a_connection_lost_in_the_middle_of_a_take_over_loses_none_of_it(
    redis_url: str,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
    doomed: Callable[[int], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_sender(redis_url).send([envelope("a", priority="high"), envelope("b", priority="low")])
    doomed(2).kill()
    consumer: Any = make_consumer(redis_url, lease_seconds=LEASE)
    ask, claims = consumer._ask, 0

    def ask_on_a_bad_line(packed: bytes, *rest: Any, **options: Any) -> Any:
        nonlocal claims
        claims += b"XCLAIM" in packed
        if claims == 2 and b"XCLAIM" in packed:
            consumer._connection._sock.shutdown(socket.SHUT_RDWR)
        return ask(packed, *rest, **options)

    monkeypatch.setattr(consumer, "_ask", ask_on_a_bad_line)
    seen: list[str] = []

    def have_come() -> bool:
        try:
            deliveries = consumer.fetch(10, 0.5)
        except BrokerUnavailable:
            consumer.open()
        else:
            seen.extend(ids(deliveries))
            consumer.ack(deliveries)
        return len(seen) >= 2

    until(have_come, "both deliveries")
    assert claims >= 3
    assert sorted(seen) == ["a", "b"]


def test_a_long_job_keeps_its_lease(
    redis_url: str, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(redis_url).send([envelope("long")])
    busy = make_consumer(redis_url, name="busy@test-1", lease_seconds=LEASE)
    held = fetch(busy, 1)
    other = make_consumer(redis_url, name="other@test-2", lease_seconds=LEASE)
    assert other.fetch(10, 4 * LEASE) == []
    busy.ack(held)


def test_a_worker_that_was_suspended_past_its_lease_does_not_take_back_what_it_lost(
    redis_url: str,
    prefix: str,
    client: redis.Redis,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
    doomed: Callable[[int], subprocess.Popen[str]],
) -> None:
    make_sender(redis_url).send([envelope("a")])
    process = doomed(1)
    process.send_signal(signal.SIGSTOP)
    consumer = make_consumer(redis_url, name="second@test-2", lease_seconds=LEASE)
    [deliveries] = fetch(consumer, 1)
    assert deliveries.deliveries == 2
    process.send_signal(signal.SIGCONT)
    key = lane_key(prefix, "emails", "normal")
    until = time.monotonic() + 4 * LEASE
    while time.monotonic() < until:
        [entry] = client.xpending_range(key, "workers", "-", "+", 10)
        assert entry["consumer"] == b"second@test-2"
        time.sleep(0.02)
    consumer.ack([deliveries])
    assert client.xlen(key) == 0


def test_a_late_acknowledgement_counts_although_another_has_taken_over(
    redis_url: str, prefix: str, client: redis.Redis, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(redis_url).send([envelope("a")])
    slow = make_consumer(redis_url, name="slow@test-1", lease_seconds=LEASE)
    late = fetch(slow, 1)
    client.xclaim(lane_key(prefix, "emails", "normal"), "workers", "fast@test-2", 0, [late[0].tag[1]])
    slow.release(late)  # not its own any more: no copy is made
    assert client.xlen(lane_key(prefix, "emails", "normal")) == 1
    slow.ack(late)
    assert client.xlen(lane_key(prefix, "emails", "normal")) == 0
    assert pending(client, prefix) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"h": "{broken", "b": "[]"},
        {"h": "[1]", "b": "[]"},
        {"h": b"\xff\xfe", "b": b"\x00"},
        {"h": "{}", "b": "[]", "extra": "1"},
    ],
)
def test_an_entry_that_is_not_a_message_is_delivered_with_its_bytes(
    fields: dict[str, str], redis_url: str, prefix: str, client: redis.Redis, make_consumer: MakeConsumer
) -> None:
    client.xadd(lane_key(prefix, "emails", "high"), fields)  # type: ignore[arg-type]
    consumer = make_consumer(redis_url)
    [delivery] = fetch(consumer, 1)
    assert delivery.envelope.headers == {}
    assert (delivery.envelope.queue, delivery.envelope.priority) == ("emails", "high")
    for name, value in fields.items():
        assert name.encode() + b"=" + (value.encode() if isinstance(value, str) else value) in delivery.raw
    consumer.ack([delivery])
    assert consumer.fetch(1, 0.1) == []


def test_a_consumer_leaves_the_group_only_with_empty_hands(
    redis_url: str, prefix: str, client: redis.Redis, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(redis_url).send([envelope("a")])
    first, second = make_consumer(redis_url, name="first"), make_consumer(redis_url, name="second")
    fetch(first, 1)
    second.fetch(1, 0)
    first.close()
    second.close()
    registered = client.xinfo_consumers(lane_key(prefix, "emails", "normal"), "workers")
    assert [consumer["name"] for consumer in registered] == [b"first"]


def test_consumers_that_have_long_been_gone_are_forgotten_unless_they_hold_something(
    redis_url: str,
    prefix: str,
    client: redis.Redis,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_sender(redis_url).send([envelope("a")])
    key = lane_key(prefix, "emails", "normal")
    client.xgroup_create(key, "workers", "0")
    client.xgroup_createconsumer(key, "workers", "gone")
    client.xreadgroup("workers", "crashed", {key: ">"})
    monkeypatch.setattr(consumers, "_FORGET_CONSUMERS_MS", 50)
    until(lambda: min(c["idle"] for c in client.xinfo_consumers(key, "workers")) > 50)
    make_consumer(redis_url, name="new")
    assert [consumer["name"] for consumer in client.xinfo_consumers(key, "workers")] == [b"crashed"]


def test_connections_cut_while_idle_do_not_fail_a_send(
    redis_url: str, prefix: str, client: redis.Redis, make_sender: MakeSender
) -> None:
    def cut() -> None:
        client.client_kill_filter(_type="normal", skipme=True)

    async def asynchronously() -> None:
        sender = AsyncRedisSender(redis_url, prefix=prefix)
        await sender.send([envelope("c")])
        cut()
        await sender.send([envelope("d")])
        await sender.close()

    sender = make_sender(redis_url)
    sender.send([envelope("a")])
    cut()
    sender.send([envelope("b")])
    asyncio.run(asynchronously())
    assert sender.depths(["emails"]) == {"emails": 4}


def test_an_async_sender_serves_several_loops_one_after_the_other(
    redis_url: str, prefix: str, make_sender: MakeSender
) -> None:
    sender = AsyncRedisSender(redis_url, prefix=prefix)

    async def send_and_close() -> None:
        await sender.send([envelope()])
        await sender.close()

    asyncio.run(send_and_close())
    asyncio.run(send_and_close())
    assert make_sender(redis_url).depths(["emails"]) == {"emails": 2}


def test_a_restart_of_redis_loses_nothing_and_late_acknowledgements_arrive(
    own_redis: RedisServer, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    sender = make_sender(own_redis.url)
    consumer = make_consumer(own_redis.url, lease_seconds=LEASE)
    sender.send([envelope(str(i)) for i in range(20)])
    held = fetch(consumer, 10)
    own_redis.kill()
    consumer.ack(held)  # does not raise, and is kept
    with pytest.raises(BrokerUnavailable):
        consumer.fetch(10, 5)
    with pytest.raises(BrokerUnavailable):
        consumer.fetch(10, 5)
    with pytest.raises(BrokerUnavailable):
        sender.send([envelope("lost to the caller")])
    own_redis.start()
    consumer.open()
    rest = fetch(consumer, 10)
    assert ids(rest) == [str(i) for i in range(10, 20)]
    consumer.ack(rest)
    sender.send([envelope("after")])
    assert ids(fetch(consumer, 1)) == ["after"]
    with redis.Redis.from_url(own_redis.url) as client:
        until(lambda: client.xlen(lane_key(prefix, "emails", "normal")) == 1, "the late acknowledgement")


def test_redis_flushed_under_a_running_consumer_goes_on(
    own_redis: RedisServer, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    sender, consumer = make_sender(own_redis.url), make_consumer(own_redis.url, lease_seconds=LEASE)
    with redis.Redis.from_url(own_redis.url) as client:
        sender.send([envelope("before")])
        held = fetch(consumer, 1)
        client.flushall()
        sender.send([envelope("after")])
        assert ids(fetch(consumer, 1)) == ["after"]
        consumer.ack(held)
        client.flushall()
        assert consumer.fetch(10, 2 * LEASE) == []
        sender.send([envelope("again")])
        assert ids(fetch(consumer, 1)) == ["again"]


def test_a_refusal_of_redis_is_a_broker_that_is_unavailable(own_redis: RedisServer, make_sender: MakeSender) -> None:
    sender = make_sender(own_redis.url)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", "1")
        for call in (sender.send, sender.send):
            with pytest.raises(BrokerUnavailable, match="refused"):
                call([envelope()])
        client.config_set("maxmemory", "0")
    sender.send([envelope()])


def test_the_redis_library_is_loaded_only_when_a_connection_is_made() -> None:
    code = (
        "import sys, penstock.producers.senders.redis.sender as r; r.RedisSender('redis://h');"
        "print('redis' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
