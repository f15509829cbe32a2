"""A Redis at its maxmemory with `noeviction`: it refuses what needs memory, and workers need none to make room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import redis
from support.brokers import envelope, fetch, ids
from support.polling import until
from workers.limits.clocked_store import ONE, RULES, TWO, Clocked, entry

from penstock.config.errors import BrokerUnavailable
from penstock.producers.limits.store import SlotGrant, SlotRefusal
from penstock.producers.senders import Sender, open_async_sender
from penstock.workers.brokers import Consumer
from penstock.workers.local.up.redis_server import RedisServer

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]
COUNT = 48_000
LEASE = 0.6


@pytest.fixture
def fill(own_redis: RedisServer) -> Iterator[Callable[[], None]]:
    """Makes it full from now on, however much is taken out."""
    with redis.Redis.from_url(own_redis.url) as client:
        yield lambda: client.config_set("maxmemory", 1) and None


def test_a_new_consumer_drains_a_full_redis(
    own_redis: RedisServer, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer, fill: Callable[[], None]
) -> None:
    sender = make_sender(own_redis.url)
    sender.send([envelope(str(number)) for number in range(COUNT)])
    fill()
    consumer = make_consumer(own_redis.url)
    seen: list[str] = []
    while len(seen) < COUNT:
        deliveries = fetch(consumer, min(500, COUNT - len(seen)))
        consumer.ack(deliveries)
        seen += ids(deliveries)
    assert seen == [str(number) for number in range(COUNT)]
    assert sender.depths(["emails"]) == {"emails": 0}
    other = make_consumer(own_redis.url, "emails", "new", name="other@test-2")
    assert other.fetch(10, 2 * LEASE) == []


def test_a_full_redis_takes_back_what_is_released_and_keeps_the_leases_of_what_is_held(
    own_redis: RedisServer, make_sender: MakeSender, make_consumer: MakeConsumer, fill: Callable[[], None]
) -> None:
    make_sender(own_redis.url).send([envelope(str(number)) for number in range(4)])
    consumer = make_consumer(own_redis.url, lease_seconds=LEASE)
    held = fetch(consumer, 4)
    fill()
    other = make_consumer(own_redis.url, name="other@test-2", lease_seconds=LEASE)
    consumer.release(held[:2])
    assert sorted(ids(fetch(other, 2))) == ["0", "1"]
    assert other.fetch(10, 3 * LEASE) == [], "it renews the others"
    consumer.close()
    assert sorted(ids(fetch(other, 2))) == ["2", "3"]


def test_producers_of_a_full_redis_get_the_reason(
    own_redis: RedisServer, prefix: str, make_sender: MakeSender, fill: Callable[[], None]
) -> None:
    limited = make_sender(own_redis.url, max_lengths={"emails": 10})
    fill()

    async def asynchronously() -> None:
        sender = open_async_sender(own_redis.url, prefix=prefix)
        with pytest.raises(BrokerUnavailable, match="raise maxmemory"):
            await sender.send([envelope()])
        await sender.close()

    for sender in (limited, make_sender(own_redis.url)):
        for envelopes in ([envelope()], [envelope(), envelope("2")]):
            with pytest.raises(BrokerUnavailable, match="raise maxmemory"):
                sender.send(envelopes)
    asyncio.run(asynchronously())
    assert limited.depths(["emails"]) == {"emails": 0}


def test_limits_are_kept_in_a_full_redis(own_redis: RedisServer, prefix: str, fill: Callable[[], None]) -> None:
    store = Clocked(own_redis.url, prefix)
    store.open()
    fill()
    first, second = entry("first", ONE), entry("second", ONE)
    assert store.acquire([first, second]) == [SlotGrant(0), SlotRefusal("one:")]
    store.renew([*RULES.values()], [first])
    store.release([first])
    store.mark_wanted(["one:", "two:"])
    assert store.acquire([entry("third", TWO)]) == [SlotRefusal("two:")], "others wait for it"
    until(lambda: {free.slot for free in store.take_free(10)} == {"one:", "two:"})
    store.close()
