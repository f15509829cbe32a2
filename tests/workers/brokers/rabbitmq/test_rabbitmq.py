"""Particular to RabbitMQ: confirms, dead letters, lost connections."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.brokers import envelope, fetch, ids
from support.ledgers import set_up
from support.polling import until

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers.senders import Sender
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.senders.rabbitmq.names import lane_name, lane_of
from penstock.producers.senders.rabbitmq.publisher import DELIVERY_LIMIT, connect
from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers import Consumer, Delivery
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.brokers.rabbitmq import consumer as rabbitmq
from penstock.workers.dispatcher.inbox import Inbox
from penstock.workers.telemetry.failures import hooks
from penstock.workers.telemetry.failures.failure import Failure
from penstock.workers.telemetry.failures.hooks import on_failure
from penstock.workers.telemetry.failures.reports import FailureReports

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]


def cut(connection: Any) -> None:
    connection.transport.sock.shutdown(socket.SHUT_RDWR)


def test_a_sender_reconnects_after_its_connection_was_cut(amqp_url: str, make_sender: MakeSender) -> None:
    sender: Any = make_sender(amqp_url)
    sender.send([envelope("a")])
    cut(sender._publisher.connection)
    sender.send([envelope("b"), envelope("c")])
    until(lambda: sender.depths(["emails"]) == {"emails": 3})


def test_a_message_that_a_queue_rejects_for_a_moment_is_published_until_it_is_accepted(
    amqp_url: str, prefix: str, make_sender: MakeSender
) -> None:
    connection = connect(amqp_url, timeout_seconds=5)
    lane = lane_name(prefix, "emails", "normal")
    arguments = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    connection.channel().queue_declare(lane, durable=True, auto_delete=False, arguments=arguments)
    sender: Any = make_sender(amqp_url)

    def send(envelopes: list[Envelope], timeout_seconds: float) -> None:
        sender.ping()
        sender._publisher._declared.add(("emails", "normal"))  # as it is, with room for one message or two
        sender._publisher.timeout_seconds = timeout_seconds
        sender.send(envelopes)

    delivered: list[str] = []
    stop = threading.Event()

    def take() -> None:
        channel = connection.channel()
        while not stop.is_set():
            if (message := channel.basic_get(lane)) is None:
                stop.wait(0.01)
                continue
            channel.basic_ack(message.delivery_tag)
            delivered.append(message.properties["correlation_id"])

    sent = [envelope(f"job-{number}") for number in range(30)]
    with pytest.raises(BrokerUnavailable, match=r"1 messages (for|not confirmed in) 1 s"):
        for job in sent[:10]:
            send([job], 1.0)
    thread = threading.Thread(target=take)
    thread.start()
    try:
        send(sent[10:], 30)
        until(lambda: set(delivered) >= {job.id for job in sent[10:]})
    finally:
        stop.set()
        thread.join()
        connection.close()


def test_a_lost_connection_gives_the_deliveries_back_and_settling_them_is_harmless(
    amqp_url: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    sender, consumer = make_sender(amqp_url), make_consumer(amqp_url)
    sender.send([envelope("a"), envelope("b")])
    old: Any = fetch(consumer, 2)
    cut(consumer._connection)  # type: ignore[attr-defined]
    consumer.ack(old[:1])  # never reaches the broker
    with pytest.raises(BrokerUnavailable):
        consumer.fetch(10, 5)
    consumer.open()
    again = fetch(consumer, 2)
    assert sorted(ids(again)) == ["a", "b"]
    assert {delivery.deliveries for delivery in again} == {2}
    consumer.ack(old)
    consumer.release(old)
    consumer.ack(again)
    until(lambda: sender.depths(["emails"]) == {"emails": 0})
    assert consumer.fetch(1, 0.2) == []


def test_the_brokers_own_headers_do_not_stay_on_the_envelope(
    amqp_url: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(amqp_url).send([sent := envelope("a")])
    consumer = make_consumer(amqp_url)
    consumer.release(fetch(consumer, 1))
    [again] = fetch(consumer, 1)
    assert again.envelope == sent
    assert again.deliveries == 2


def test_a_delivery_that_rabbitmq_gives_up_on_can_be_drained(
    amqp_url: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(amqp_url).send([sent := envelope("poison", priority="low")])
    consumer = make_consumer(amqp_url)
    drained: list[Any] = []

    def is_drained() -> list[Any]:
        consumer.release(consumer.fetch(1, 0.1))
        drained.extend(consumer.drain_dead(10))
        return drained

    until(is_drained)
    [dead] = drained
    assert dead.envelope == sent
    consumer.ack(drained)
    consumer.close()
    assert make_consumer(amqp_url).drain_dead(10) == []


def test_the_death_of_a_job_that_rabbitmq_gives_up_on_is_a_line_in_the_log_and_reaches_hooks(
    amqp_url: str,
    sqlite_url: str,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[Failure] = []
    monkeypatch.setattr(hooks, "_hooks", [])
    on_failure(failures.append)
    make_sender(amqp_url).send([envelope("poison")])
    consumer = make_consumer(amqp_url)
    ledger = Database(set_up(sqlite_url))
    inbox = Inbox(ledger, make_consumer(amqp_url, "dispatcher", name="dispatcher"), Settings().lease)
    inbox.reports = FailureReports(Settings())

    def is_reported() -> list[Failure]:
        consumer.release(consumer.fetch(1, 0.1))
        inbox.run_once()
        return failures

    try:
        [failure] = until(is_reported)
    finally:
        inbox.reports.close()
        inbox.close()
        ledger.close()
    assert (failure.job_id, failure.kind, failure.reason) == ("poison", "email.send", "delivery_limit")
    [line] = [record for record in caplog.records if "is a dead letter" in record.message]
    assert (line.levelname, line.job_id) == ("ERROR", "poison")  # type: ignore[attr-defined]
    assert "(email.send) is a dead letter: delivery_limit" in line.message


def test_a_queue_deleted_under_a_sender_is_made_again(amqp_url: str, prefix: str, make_sender: MakeSender) -> None:
    sender = make_sender(amqp_url)
    sender.send([envelope("a")])
    connection = connect(amqp_url, timeout_seconds=10)
    connection.channel().queue_delete(lane_name(prefix, "emails", "normal"))
    connection.close()
    sender.send([envelope(str(i)) for i in range(5)])
    until(lambda: sender.depths(["emails"]) == {"emails": 5})


def test_a_queue_deleted_under_a_consumer_shows_as_a_lost_connection(
    amqp_url: str, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    consumer = make_consumer(amqp_url)
    consumer.fetch(1, 0.1)
    connection = connect(amqp_url, timeout_seconds=10)
    connection.channel().queue_delete(lane_name(prefix, "emails", "normal"))
    connection.close()
    with pytest.raises(BrokerUnavailable):
        consumer.fetch(1, 60)
    consumer.open()
    make_sender(amqp_url).send([envelope("a")])
    assert ids(fetch(consumer, 1)) == ["a"]


def test_a_worker_that_fetches_what_it_has_room_for_keeps_one_more_at_hand_and_no_more(
    amqp_url: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(amqp_url).send([envelope(str(i)) for i in range(10)])
    first, second = make_consumer(amqp_url, name="w1"), make_consumer(amqp_url, name="w2")
    assert len(fetch(first, 4, limit=4)) == 4
    assert first.fetch(0, 0.1) == []
    assert len(fetch(second, 5, limit=6)) == 5
    first.close()
    assert len(fetch(second, 5, limit=6)) == 5


@pytest.mark.parametrize("end", ["fetch", "stop consuming"])
def test_a_worker_that_is_blocked_again_and_again_does_not_use_up_the_delivery_limit(
    amqp_url: str, make_sender: MakeSender, make_consumer: MakeConsumer, end: str
) -> None:
    make_sender(amqp_url).send([envelope(str(i)) for i in range(6)])
    blocked = make_consumer(amqp_url, name="w1")
    [running] = fetch(blocked, 1, limit=1)
    for _ in range(DELIVERY_LIMIT + 5):
        blocked.set_blocked(True)
        assert blocked.fetch(1, 0.05) == []
        blocked.set_blocked(False)
    blocked.ack([running])
    rest = blocked
    if end == "stop consuming":
        blocked.set_blocked(True)
        blocked.stop_consuming()
        blocked.set_blocked(False)
        rest = make_consumer(amqp_url, name="w2")
    deliveries = fetch(rest, 5, limit=5)
    assert sorted(ids(deliveries)) == [str(i) for i in range(1, 6)]
    assert max(delivery.deliveries for delivery in deliveries) == (2 if rest is blocked else 3)


def test_heartbeats_keep_a_connection_whose_worker_is_busy(
    amqp_url: str, make_sender: MakeSender, make_consumer: MakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "HEARTBEAT_SECONDS", 1)
    make_sender(amqp_url).send([envelope("a")])
    consumer = make_consumer(amqp_url)
    held = fetch(consumer, 1)
    time.sleep(4)  # RabbitMQ would cut a silent client after two to three
    consumer.ack(held)
    assert consumer.fetch(1, 0.2) == []


def test_messages_without_headers_are_delivered_with_their_bytes(
    amqp_url: str, prefix: str, make_consumer: MakeConsumer
) -> None:
    import amqp

    consumer = make_consumer(amqp_url)
    connection = connect(amqp_url, timeout_seconds=10)
    connection.channel().basic_publish(amqp.Message(b"\xff\x00junk"), routing_key=lane_name(prefix, "emails", "high"))
    connection.close()
    [delivery] = fetch(consumer, 1)
    assert (delivery.envelope.headers, delivery.raw) == ({}, b"\xff\x00junk")
    consumer.ack([delivery])


@pytest.mark.parametrize("queue", ["dead", "a.high", "a.low"])
def test_names_that_would_be_other_queues_lanes_are_refused(queue: str) -> None:
    with pytest.raises(ConfigError, match=queue):
        lane_name("penstock", queue, "normal")


def test_the_name_of_a_lane_contains_its_queue_and_priority() -> None:
    for priority in ("high", "normal", "low"):
        assert lane_of("a.b", lane_name("a.b", "c.d", priority)) == ("c.d", priority)


def test_a_queue_with_other_arguments_is_explained(amqp_url: str, prefix: str, make_sender: MakeSender) -> None:
    connection = connect(amqp_url, timeout_seconds=10)
    connection.channel().queue_declare(lane_name(prefix, "emails", "normal"), durable=True, auto_delete=False)
    connection.close()
    with pytest.raises(ConfigError, match="other arguments"):
        make_sender(amqp_url).send([envelope()])


def test_kombu_is_loaded_only_when_a_connection_is_made() -> None:
    code = (
        "import sys, penstock.producers.senders.rabbitmq.sender as r; r.RabbitmqSender('amqp://h');"
        "print({'kombu', 'amqp'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(("deliveries", "seconds"), [(1, 1.0), (2, 4.0), (3, 16.0), (4, 64.0), (5, 256.0), (6, None)])
def test_a_delivery_goes_on_to_others_the_later_the_more_often_it_came(
    amqp_url: str, make_consumer: MakeConsumer, deliveries: int, seconds: float | None
) -> None:
    counted = Delivery(envelope("a"), b"", deliveries, None, make_consumer(amqp_url))
    uncounted = Delivery(envelope("a"), b"", deliveries, None, MemoryConsumer(MemoryBroker(), {"q"}))
    assert uncounted.may_go_on(0.5)
    if seconds is None:
        assert not counted.may_go_on(1e9)
    else:
        assert counted.may_go_on(seconds)
        assert not counted.may_go_on(seconds / 2)


def test_a_consumer_that_rests_lets_others_have_what_came_once_they_have_waited_for_it(
    amqp_url: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(amqp_url).send([envelope(str(i)) for i in range(3)])
    full, idle = make_consumer(amqp_url, name="w1"), make_consumer(amqp_url, name="w2")
    assert ids(fetch(full, 1, limit=1)) == ["0"]  # and "1" is at hand
    full.rest(0.0)
    assert ids(fetch(idle, 1, limit=3)) == ["2"]
    full.rest(0.5)
    assert idle.fetch(3, 0.3) == []
    full.rest(1.0)
    [delivery] = fetch(idle, 1, limit=3)
    assert (delivery.envelope.id, delivery.deliveries) == ("1", 2)
