"""Messages of unmodified Dramatiq clients arrive in our lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from support.brokers import fetch
from support.polling import until
from support.servers.shared import for_pika
from workers.brokers.stock.moving import MakeIntake, assert_moved_once, move, to_emails

from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers import Consumer
from penstock.workers.brokers.stock.intake import open_stock_intake

Send = Callable[..., dramatiq.Message[Any]]


@pytest.fixture
def stock_queue(prefix: str) -> str:
    return f"{prefix}stock"


@pytest.fixture
def client(broker_url: str, stock_queue: str) -> Iterator[dramatiq.Broker]:
    """A stock client's broker; its keys and queues are deleted afterwards."""
    if broker_url.startswith("redis"):
        broker: dramatiq.Broker = RedisBroker(url=broker_url, middleware=[])
        yield broker
        with redis.Redis.from_url(broker_url) as connection:
            connection.delete(*(connection.keys(f"dramatiq:*{stock_queue}*") or ["-"]))
        broker.client.close()  # type: ignore[attr-defined]
        broker.client.connection_pool.disconnect()  # type: ignore[attr-defined]
    else:
        broker = RabbitmqBroker(url=for_pika(broker_url), confirm_delivery=True, middleware=[])
        yield broker
        for suffix in ("", ".DQ", ".XQ"):
            broker.channel.queue_delete(stock_queue + suffix)  # type: ignore[attr-defined]
    broker.close()


@pytest.fixture
def send(client: dramatiq.Broker, stock_queue: str) -> Send:
    client.declare_queue(stock_queue)

    def send(name: str, *args: Any, delay: int | None = None, **kwargs: Any) -> dramatiq.Message[Any]:
        return client.enqueue(dramatiq.Message(stock_queue, name, args, kwargs, {}), delay=delay)

    return send


def test_messages_arrive_whole_and_in_order(
    send: Send, make_intake: MakeIntake, stock_queue: str, consumer: Consumer
) -> None:
    sent = [send("x.y", 1, "zwei", three="☂").message_id for _ in range(25)]
    delayed = send("x.later", delay=60_000)
    move(make_intake(), 26)
    envelopes = {delivery.envelope.id: delivery.envelope for delivery in fetch(consumer, 26)}
    assert list(envelopes) == [*sent, delayed.message_id]
    assert envelopes[sent[0]].kind == "x.y"
    assert envelopes[sent[0]].body.startswith(b'[[1, "zwei"], {"three": "\\u2602"}')
    assert "eta" not in envelopes[sent[0]].headers
    assert envelopes[delayed.message_id].headers["eta"] > "20"


def test_a_message_that_the_router_handles_is_removed(send: Send, make_intake: MakeIntake) -> None:
    send("x.y")
    intake = make_intake()
    seen: list[tuple[str, str]] = []

    def route(envelope: Envelope, raw: bytes) -> None:
        seen.append((envelope.queue, envelope.kind))

    until(lambda: intake.take(10, route) == 1)
    assert intake.take(10, route) == 0
    assert len(seen) == 1


def test_several_dispatchers_move_each_message_once(send: Send, make_intake: MakeIntake, consumer: Consumer) -> None:
    sent = {send("x.y").message_id for _ in range(60)}
    assert_moved_once(sent, make_intake, consumer)


def test_a_message_that_a_dramatiq_worker_has_fetched_stays_with_it(
    send: Send, client: dramatiq.Broker, make_intake: MakeIntake, stock_queue: str
) -> None:
    own = send("x.y")
    consumer = client.consume(stock_queue, prefetch=1, timeout=10_000)
    fetched = next(consumer)
    assert fetched is not None
    assert fetched.message_id == own.message_id
    intake = make_intake()
    for _ in range(3):
        assert intake.take(10, to_emails) == 0
    consumer.ack(fetched)
    consumer.close()


def test_moved_messages_leave_nothing_on_redis(redis_url: str, prefix: str) -> None:
    broker = RedisBroker(url=redis_url, middleware=[])
    queue = f"{prefix}gone"
    broker.enqueue(dramatiq.Message(queue, "x.y", (), {}, {}))
    with redis.Redis.from_url(redis_url) as client:
        client.rpush(f"dramatiq:{queue}", "an id without a message")
        client.hset(f"dramatiq:{queue}.msgs", "bad", b"\xff")
        client.rpush(f"dramatiq:{queue}", "bad")
        intake = open_stock_intake(redis_url, [queue], prefix)
        seen: list[bytes] = []
        assert (
            intake.take(
                10, lambda envelope, raw: seen.append(raw) if not envelope.headers else to_emails(envelope, raw)
            )
            == 3
        )
        assert seen == [b"\xff"]
        assert client.exists(f"dramatiq:{queue}", f"dramatiq:{queue}.msgs") == 0
    intake.close()
    broker.client.connection_pool.disconnect()
