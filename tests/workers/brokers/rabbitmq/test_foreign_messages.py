"""Messages on RabbitMQ that py-amqp cannot read: they are delivered, and block no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import amqp
import pytest
from support.brokers import envelope, fetch, ids
from support.ledgers import letters
from support.polling import until

from penstock.config.errors import UndecodableMessage
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.abandoned import bury_dropped
from penstock.ledger.transitions.bury import bury_message
from penstock.producers.senders import Sender
from penstock.producers.senders.rabbitmq.names import dead_name, lane_name
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.schemas.wire.codec import Envelope, decode
from penstock.workers.brokers import Consumer, Delivery
from penstock.workers.brokers.rabbitmq.lenient_frames import UNREADABLE
from penstock.workers.brokers.stock.intake import open_stock_intake

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]
CELERYS = {"lang": "py", "task": "email.send", "id": "1"}
PROPERTIES: dict[str, dict[str, Any]] = {
    "a property": {"correlation_id": b"caf\xe9", "application_headers": CELERYS},
    "a header": {"application_headers": {**CELERYS, "bad": b"caf\xe9"}},
    "a header in a header": {"application_headers": {**CELERYS, "bad": [{"a": b"\xff"}]}},
    "a header's name": {"application_headers": {**CELERYS, b"caf\xe9": 1}},
    "a lone surrogate": {"application_headers": {**CELERYS, "id": "\ud800"}},
    "a NUL": {"application_headers": {**CELERYS, "id": "\0"}},
}
foreign = pytest.mark.parametrize("properties", PROPERTIES.values(), ids=PROPERTIES)


@pytest.fixture
def channel(amqp_url: str) -> Iterator[Any]:
    connection = connect(amqp_url, timeout_seconds=10)
    yield connection.channel()
    connection.close()


def message(properties: dict[str, Any]) -> Any:
    message = amqp.Message(b"\xffbody", **properties)
    message.properties.setdefault("content_encoding", "binary")  # else py-amqp decodes the body to send it
    return message


def bury(ledger: Database, delivery: Delivery) -> None:
    """Settle a message that does not decode, as a worker does."""
    with pytest.raises(UndecodableMessage) as caught:
        decode(delivery.envelope)
    bury_message(ledger, delivery.envelope, delivery.raw, caught.value.reason, caught.value.detail)


@foreign
def test_a_foreign_message_among_jobs_is_delivered_and_can_be_buried(
    properties: dict[str, Any],
    amqp_url: str,
    prefix: str,
    ledger: Database,
    channel: Any,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
) -> None:
    sender, consumer = make_sender(amqp_url), make_consumer(amqp_url)
    channel.basic_publish(message(properties), routing_key=lane_name(prefix, "emails", "normal"))
    sender.send([envelope("after")])
    deliveries = fetch(consumer, 2)
    assert ids(deliveries)[1] == "after"
    assert deliveries[0].raw == b"\xffbody"
    bury(ledger, deliveries[0])
    [letter] = letters(ledger)
    assert letter.raw == b"\xffbody"
    consumer.ack(deliveries)
    until(lambda: sender.depths(["emails"]) == {"emails": 0})


def test_properties_that_cannot_be_read_are_kept(
    amqp_url: str, prefix: str, channel: Any, make_consumer: MakeConsumer
) -> None:
    consumer = make_consumer(amqp_url)
    channel.basic_publish(message(PROPERTIES["a property"]), routing_key=lane_name(prefix, "emails", "normal"))
    [delivery] = fetch(consumer, 1)
    assert list(delivery.envelope.headers) == [UNREADABLE]
    assert "caf\\xe9" in delivery.envelope.headers[UNREADABLE]
    assert "email.send" in delivery.envelope.headers[UNREADABLE]
    consumer.release([delivery])
    [again] = fetch(consumer, 1)
    assert again.deliveries == 2
    consumer.ack([again])


@foreign
def test_a_foreign_message_among_dead_letters_does_not_block_them(
    properties: dict[str, Any],
    amqp_url: str,
    prefix: str,
    ledger: Database,
    channel: Any,
    make_consumer: MakeConsumer,
) -> None:
    consumer = make_consumer(amqp_url)
    good = amqp.Message(b"[]", application_headers=envelope("good").headers)
    channel.basic_publish(message(properties), exchange=dead_name(prefix), routing_key=b"caf\xe9")
    channel.basic_publish(good, exchange=dead_name(prefix), routing_key=lane_name(prefix, "emails", "normal"))
    drained: list[Delivery] = []
    until(lambda: drained.extend(consumer.drain_dead(10)) or len(drained) == 2)
    assert ids(drained)[1] == "good"
    assert drained[0].raw == b"\xffbody"
    assert all(bury_dropped(ledger, delivery.envelope, delivery.raw, "dropped") for delivery in drained)
    assert {letter.reason for letter in letters(ledger)} == {"delivery_limit"}
    assert len(letters(ledger)) == 2
    consumer.ack(drained)


def test_a_message_whose_routing_key_is_not_text_is_delivered(
    amqp_url: str, prefix: str, channel: Any, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(amqp_url).send([envelope("first")])
    consumer = make_consumer(amqp_url)
    exchange = f"{prefix}-stock"
    channel.exchange_declare(exchange, "fanout")
    channel.queue_bind(lane_name(prefix, "emails", "normal"), exchange)
    for _ in range(200):  # past the delivery tags whose bytes are ASCII
        channel.basic_publish(message({"application_headers": CELERYS}), exchange=exchange, routing_key=b"caf\xe9")
    deliveries = fetch(consumer, 201)
    assert {delivery.raw for delivery in deliveries[1:]} == {b"\xffbody"}
    consumer.ack(deliveries)


@foreign
def test_a_foreign_message_in_a_stock_clients_queue_does_not_block_the_intake(
    properties: dict[str, Any], amqp_url: str, prefix: str, channel: Any
) -> None:
    queue = f"{prefix}stock"
    channel.queue_declare(queue, durable=True, auto_delete=False)
    channel.basic_publish(message(properties), routing_key=queue)
    channel.basic_publish(amqp.Message(b"[]", application_headers=CELERYS), routing_key=queue)
    intake = open_stock_intake(amqp_url, [queue], prefix)
    routed: list[tuple[Envelope, bytes]] = []

    def route(envelope: Envelope, raw: bytes) -> None:
        routed.append((envelope, raw))

    until(lambda: intake.take(10, route) or len(routed) == 2)
    intake.close()
    assert [raw for _, raw in routed] == [b"\xffbody", b"[]"]
    assert routed[1][0].headers == CELERYS
