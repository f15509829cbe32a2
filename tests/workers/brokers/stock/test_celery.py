"""Messages of unmodified Celery clients arrive in our lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import amqp
import kombu.pools
import pytest
import redis
from celery import Celery
from support.brokers import fetch, ids
from support.polling import until
from workers.brokers.stock.moving import MakeIntake, assert_moved_once, move, to_emails

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.schemas.wire.codec import KEPT_BYTES, MESSAGE_BYTES, Envelope
from penstock.workers.brokers import Consumer
from penstock.workers.brokers.stock.intake import open_stock_intake

MakeConsumer = Callable[..., Consumer]


@pytest.fixture
def stock_queue(broker_url: str, prefix: str) -> Iterator[str]:
    """The name of a queue of a stock client's own, removed afterwards."""
    name = f"{prefix}stock"
    yield name
    if broker_url.startswith("redis"):
        with redis.Redis.from_url(broker_url) as client:
            client.delete(name, *(f"{name}\x06\x16{step}" for step in (3, 6, 9)))
            client.srem(f"_kombu.binding.{name}", *client.smembers(f"_kombu.binding.{name}") or ["-"])
    else:
        connection = connect(broker_url, timeout_seconds=10)
        connection.channel().queue_delete(name)
        with suppress(Exception):
            connection.channel().exchange_delete(name)
        connection.close()


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    with Celery("stock", broker=broker_url, set_as_current=False) as app:
        yield app
        kombu.pools.reset()  # they outlive the app


def test_a_stock_clients_message_arrives_whole(
    app: Celery, make_intake: MakeIntake, stock_queue: str, consumer: Consumer
) -> None:
    sent = app.send_task("x.y", args=[1, "zwei"], kwargs={"three": "☂"}, queue=stock_queue, countdown=60)
    seen: list[tuple[str, bytes]] = []

    def route(envelope: Envelope, raw: bytes) -> Envelope:
        seen.append((envelope.queue, raw))
        return to_emails(envelope, raw)

    intake = make_intake()
    until(lambda: intake.take(100, route) == 1)
    [delivery] = fetch(consumer, 1)
    envelope = delivery.envelope
    assert (envelope.id, envelope.kind, envelope.priority) == (sent.id, "x.y", "normal")
    assert envelope.headers["eta"] is not None
    assert envelope.body.startswith(b'[[1, "zwei"], {"three": "\\u2602"}')
    assert seen[0][0] == stock_queue
    assert seen[0][1]
    assert intake.take(100, route) == 0


def test_order_is_kept_and_the_limit_respected(
    app: Celery, make_intake: MakeIntake, stock_queue: str, consumer: Consumer
) -> None:
    sent = [app.send_task("x.y", kwargs={"i": i}, queue=stock_queue).id for i in range(25)]
    intake = make_intake()
    counts = move(intake, 25)
    assert max(counts) == 10
    assert ids(fetch(consumer, 25)) == sent


def test_a_priority_of_its_own_chooses_another_lane(
    broker_url: str, app: Celery, make_intake: MakeIntake, stock_queue: str, consumer: Consumer
) -> None:
    app.send_task("x.usual", queue=stock_queue)
    app.send_task("x.other", queue=stock_queue, priority=6)
    intake = make_intake()
    move(intake, 2)
    lanes = {delivery.envelope.kind: delivery.envelope.priority for delivery in fetch(consumer, 2)}
    assert lanes == {"x.usual": "normal", "x.other": "low" if broker_url.startswith("redis") else "high"}


def test_a_message_that_the_router_handles_is_removed_and_not_sent(
    app: Celery, make_intake: MakeIntake, stock_queue: str, consumer: Consumer
) -> None:
    app.send_task("x.y", queue=stock_queue)
    intake = make_intake()
    until(lambda: intake.take(10, lambda envelope, raw: None) == 1)
    assert intake.take(10, to_emails) == 0
    assert consumer.fetch(1, 0.2) == []


def test_an_error_of_the_router_leaves_the_message_where_it_is(
    app: Celery, make_intake: MakeIntake, stock_queue: str, consumer: Consumer
) -> None:
    sent = app.send_task("x.y", queue=stock_queue)
    intake = make_intake()

    def failing(envelope: Envelope, raw: bytes) -> Envelope:
        raise RuntimeError(envelope.id)

    def fails() -> bool:
        with suppress(RuntimeError):
            assert intake.take(10, failing) == 0
            return False
        return True

    until(fails)
    until(lambda: intake.take(10, to_emails) == 1)
    assert ids(fetch(consumer, 1)) == [sent.id]


def test_several_dispatchers_move_each_message_once(
    app: Celery, make_intake: MakeIntake, stock_queue: str, consumer: Consumer
) -> None:
    sent = {app.send_task("x.y", queue=stock_queue).id for _ in range(120)}
    assert_moved_once(sent, make_intake, consumer)


@pytest.mark.parametrize(
    "raw", [b"junk", b"\xff\x00", b"[]", b'{"body": "e30=", "headers": [], "properties": {}}', b'{"body": 1}', b"{}"]
)
def test_bytes_that_are_not_a_message_reach_the_router(raw: bytes, redis_url: str, prefix: str) -> None:
    seen: list[tuple[dict[str, Any], bytes, bytes]] = []

    def route(envelope: Envelope, raw: bytes) -> None:
        seen.append((envelope.headers, envelope.body, raw))

    with redis.Redis.from_url(redis_url) as client:
        client.lpush(f"{prefix}junk", raw)
        intake = open_stock_intake(redis_url, [f"{prefix}junk"], prefix)
        assert intake.take(10, route) == 1
        assert client.llen(f"{prefix}junk") == 0
    assert seen == [({}, raw, raw)]
    intake.close()


@pytest.mark.parametrize("dramatiq", [False, True])
def test_a_large_message_on_redis_reaches_the_router_cut(dramatiq: bool, redis_url: str, prefix: str) -> None:
    seen: list[tuple[bytes, int | None]] = []
    queue = f"{prefix}large"
    key = f"dramatiq:{queue}" if dramatiq else queue

    def route(envelope: Envelope, raw: bytes) -> None:
        seen.append((raw, envelope.full_size))

    with redis.Redis.from_url(redis_url) as client:
        for number in range(3):
            raw = b"%d" % number + b"x" * MESSAGE_BYTES
            if dramatiq:
                client.hset(f"{key}.msgs", str(number), raw)  # type: ignore[arg-type]
                client.rpush(key, str(number))
            else:
                client.lpush(key, raw)
        intake = open_stock_intake(redis_url, [queue], prefix)
        assert intake.take(10, route) == 3
        assert client.llen(key) == 0
        assert not client.exists(f"{key}.msgs")
    intake.close()
    assert seen == [(b"%d" % number + b"x" * (KEPT_BYTES - 1), MESSAGE_BYTES + 1) for number in range(3)]


def test_a_queue_with_consumers_of_its_own_is_left_alone(amqp_url: str, prefix: str) -> None:
    connection = connect(amqp_url, timeout_seconds=10)
    channel = connection.channel()
    channel.queue_declare(f"{prefix}busy", durable=True, auto_delete=False)
    channel.basic_qos(0, 1, False)
    channel.basic_consume(f"{prefix}busy", callback=lambda message: None)
    intake = open_stock_intake(amqp_url, [f"{prefix}busy"], prefix)
    for _ in range(3):
        channel.basic_publish(amqp.Message(b"x"), routing_key=f"{prefix}busy")
    assert intake.take(10, to_emails) == 0
    intake.close()
    connection.close()


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:9/0", "amqp://guest:secret@127.0.0.1:9//"])
def test_an_intake_names_a_broker_that_is_down(url: str, prefix: str) -> None:
    intake = open_stock_intake(url, ["celery"], prefix, timeout_seconds=1)
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9") as caught:
        intake.take(1, to_emails)
    assert "secret" not in str(caught.value)
    intake.close()
