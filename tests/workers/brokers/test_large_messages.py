"""Messages over the limit: a consumer keeps their beginning, and decodes nothing of them."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import redis
from support.brokers import envelope, fetch

from penstock.config.errors import UndecodableMessage
from penstock.ledger.transitions.due import waiting
from penstock.producers.senders import Sender
from penstock.schemas.wire import codec
from penstock.schemas.wire.codec import KEPT_BYTES, MESSAGE_BYTES, Envelope, decode
from penstock.workers.brokers import Consumer

SIZE = MESSAGE_BYTES + 1


def large(id: str, size: int = SIZE) -> Envelope:
    sent = envelope(id)
    sent.body = b'[[],{"id":"' + b"x" * size + b'"},null]'
    return sent


def check(delivered: Envelope, sent: Envelope) -> None:
    assert delivered.body == sent.body[:KEPT_BYTES]
    assert delivered.headers["id"] == sent.id
    assert delivered.full_size is not None
    assert delivered.full_size >= len(sent.body)


def test_the_beginning_of_a_large_message_is_delivered_among_the_others(sender: Sender, consumer: Consumer) -> None:
    sent = [envelope("1"), large("2"), envelope("3"), large("4"), envelope("5")]
    sender.send(sent)
    deliveries = fetch(consumer, 5)
    assert [delivery.envelope.id for delivery in deliveries] == ["1", "2", "3", "4", "5"]
    for number in (1, 3):
        check(deliveries[number].envelope, sent[number])
        assert deliveries[number].raw == sent[number].body[:KEPT_BYTES]
    assert [deliveries[number].envelope for number in (0, 2, 4)] == [sent[0], sent[2], sent[4]]
    consumer.ack(deliveries)
    assert sender.depths(["emails"]) == {"emails": 0}


def test_a_message_at_the_limit_is_delivered_whole(sender: Sender, consumer: Consumer) -> None:
    sent = large("1", MESSAGE_BYTES - 4096)
    sender.send([sent])
    [delivery] = fetch(consumer, 1)
    assert delivery.envelope.full_size is None
    assert delivery.envelope.body == sent.body
    consumer.ack([delivery])


def test_a_large_message_that_is_delivered_again_is_cut_as_well(
    broker_url: str, make_sender: Callable[..., Sender], make_consumer: Callable[..., Consumer]
) -> None:
    sent = large("1")
    make_sender(broker_url).send([sent])
    first = make_consumer(broker_url, name="first", lease_seconds=1.0)
    fetch(first, 1)
    first.close()
    second = make_consumer(broker_url, name="second", lease_seconds=1.0)
    [again] = fetch(second, 1)
    check(again.envelope, sent)
    assert again.deliveries == 2
    second.ack([again])


def test_a_large_message_is_cut_that_comes_while_its_consumer_waits(sender: Sender, consumer: Consumer) -> None:
    assert consumer.fetch(10, 0.1) == []
    timer = threading.Timer(0.3, lambda: sender.send([large("1"), envelope("2")]))
    timer.start()
    deliveries = fetch(consumer, 2)
    timer.join()
    check(deliveries[0].envelope, large("1"))
    consumer.ack(deliveries)


def test_an_entry_of_redis_with_many_or_large_headers_is_cut(
    redis_url: str, prefix: str, make_consumer: Callable[..., Consumer]
) -> None:
    consumer = make_consumer(redis_url)
    client = redis.Redis.from_url(redis_url)
    [key] = [name.decode() for name in client.keys(f"*{prefix}*emails*normal*")]
    client.xadd(key, {"h": json.dumps({"task": "email.send", "id": "1", "x": "x" * SIZE}), "b": "[]"})
    client.xadd(key, {f"f{number}": "x" * 100 for number in range(60_000)})
    client.close()
    deliveries = fetch(consumer, 2)
    for delivery in deliveries:
        assert delivery.envelope.headers == {}
        assert delivery.envelope.full_size is not None
        assert len(delivery.raw) <= 4 * KEPT_BYTES + 10
    consumer.ack(deliveries)


def test_the_memory_of_a_consumer_does_not_grow_with_the_size_of_messages(sender: Sender, consumer: Consumer) -> None:
    for number in range(8):
        sender.send([large(str(number), 2 * MESSAGE_BYTES)])
    tracemalloc.start()
    try:
        deliveries = fetch(consumer, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MESSAGE_BYTES
    consumer.ack(deliveries)


def test_nothing_of_a_large_message_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("it is parsed")

    monkeypatch.setattr(codec, "_body", fail)
    monkeypatch.setattr(codec, "open_body", fail)
    cut = Envelope("emails", "normal", {"task": "email.send", "id": "1"}, b"[[],{},null]", full_size=48_000_000)
    for read in (decode, waiting):
        with pytest.raises(UndecodableMessage, match=r"48,000,000 bytes.*only the beginning") as caught:
            read(cut)
        assert caught.value.reason == "too_large"
