"""Quorum queues without a leader, as when most of their nodes are down: the other queues go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from support.brokers import envelope, fetch, ids
from support.polling import until
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders import Sender
from penstock.producers.senders.rabbitmq.names import dead_name, lane_name
from penstock.schemas.jobs.kind import PRIORITIES
from penstock.workers.brokers import Consumer, Delivery

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitmqNode]:
    if find_rabbitmq_server() is None:
        pytest.skip("rabbitmq-server is not installed: no node whose queues may be stopped")
    node = RabbitmqNode(tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.kill()


def test_a_lane_without_a_leader_does_not_stop_the_others_and_is_consumed_when_it_has_one(
    node: RabbitmqNode, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    sender = make_sender(node.url)
    sender.send([envelope("stuck"), envelope("low", priority="low"), envelope("report", queue="reports")])
    lane = lane_name(prefix, "emails", "normal")
    node.stop_queue(lane)
    consumer = make_consumer(node.url, "emails", "reports")
    held = fetch(consumer, 2)
    assert set(ids(held)) == {"low", "report"}
    sender.send([envelope("later", queue="reports")])
    assert ids(fetch(consumer, 1)) == ["later"]
    node.start_queue(lane)
    deliveries = fetch(consumer, 1)
    # Unsettled deliveries are kept: checking the lane costs the others nothing.
    assert ids(deliveries) == ["stuck"]
    consumer.ack(held)
    until(lambda: sender.depths(["reports"]) == {"reports": 0})
    assert consumer.fetch(10, 0.2) == []


def test_a_leader_lost_under_a_running_consumer_does_not_stop_it(
    node: RabbitmqNode, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    sender, consumer = make_sender(node.url), make_consumer(node.url, "emails", "reports")
    sender.send([envelope("a"), envelope("b", queue="reports")])
    consumer.ack(fetch(consumer, 2, limit=1))
    lane = lane_name(prefix, "emails", "normal")
    node.stop_queue(lane)
    sender.send([envelope(str(number), queue="reports") for number in range(10)])
    # More than it ever wanted, so it lets every lane go to take it up again with more room.
    assert len(fetch(consumer, 10, limit=50)) == 10
    node.start_queue(lane)
    sender.send([envelope("c")])
    assert ids(fetch(consumer, 1)) == ["c"]


def test_a_queue_of_dead_letters_without_a_leader_does_not_stop_the_rest(
    node: RabbitmqNode, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    sender, consumer = make_sender(node.url), make_consumer(node.url)
    sender.send([envelope("a")])
    dead = dead_name(prefix)
    node.stop_queue(dead)
    assert consumer.drain_dead(10) == []
    held = fetch(consumer, 1)
    assert consumer.drain_dead(10) == []
    consumer.ack(held)
    until(lambda: sender.depths(["emails"]) == {"emails": 0})
    node.start_queue(dead)
    publish_dead(node, prefix, "gone")
    drained: list[Delivery] = []
    until(lambda: drained.extend(consumer.drain_dead(10)) or drained)
    assert ids(drained) == ["gone"]
    consumer.ack(drained)


def test_a_consumer_none_of_whose_lanes_has_a_leader_says_so(
    node: RabbitmqNode, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    make_sender(node.url).send([envelope("a")])
    consumer = make_consumer(node.url)
    lanes = [lane_name(prefix, "emails", priority) for priority in PRIORITIES]
    for lane in lanes:
        node.stop_queue(lane)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            consumer.fetch(1, 5)
        consumer.open()
    threads = [threading.Thread(target=node.start_queue, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()

    def fetched() -> list[Delivery]:
        try:
            return consumer.fetch(1, 0.5)
        except BrokerUnavailable:
            consumer.open()
            return []

    assert ids(until(fetched)) == ["a"]
    for thread in threads:
        thread.join()


def publish_dead(node: RabbitmqNode, prefix: str, id: str) -> None:
    import amqp

    from penstock.producers.senders.rabbitmq.publisher import connect

    connection = connect(node.url, timeout_seconds=10)
    message = amqp.Message(b"[]", application_headers=envelope(id).headers)
    connection.channel().basic_publish(message, dead_name(prefix), lane_name(prefix, "emails", "normal"))
    connection.close()
