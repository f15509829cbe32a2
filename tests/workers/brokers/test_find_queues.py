"""A broker's own queues are found without the code that declares them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.brokers import fetch
from support.polling import until
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server

from penstock.config.errors import BrokerUnavailable
from penstock.config.settings import Settings
from penstock.producers.senders import find_queues, open_backlogs, open_sender_from
from penstock.schemas import Job
from penstock.schemas.wire.codec import encode
from penstock.workers.brokers import open_consumer
from penstock.workers.fleet.arrivals import Arrivals
from penstock.workers.local.up.redis_server import free_port


class Here(Job, kind="found.here", queue="found.in-a-long-name"): ...


class There(Job, kind="found.there", queue="found", priority="high"): ...


def send_to(settings: Settings) -> None:
    sender = open_sender_from(settings)
    try:
        sender.send([encode(Here()), encode(There())])
    finally:
        sender.close()


def test_the_queues_of_a_redis_are_found_by_their_lanes(redis_url: str, prefix: str) -> None:
    ours = Settings(broker_url=redis_url, prefix=prefix)
    send_to(ours)
    send_to(Settings(broker_url=redis_url, prefix=f"{prefix}.other"))
    assert find_queues(ours) == {"found.in-a-long-name", "found"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitmqNode]:
    if find_rabbitmq_server() is None:
        pytest.skip("no rabbitmq-server on this machine")
    node = RabbitmqNode(tmp_path_factory.mktemp("rabbitmq"), management=True)
    node.start()
    yield node
    node.kill()


@pytest.mark.rabbitmq
def test_the_queues_of_a_rabbitmq_are_found_through_its_management_api(node: RabbitmqNode) -> None:
    ours = Settings(broker_url=node.url, prefix="a", rabbitmq_management_url=node.management_url)
    send_to(ours)
    send_to(Settings(broker_url=node.url, prefix="a.b"))

    def found() -> set[str] | None:
        try:
            return find_queues(ours)
        except BrokerUnavailable:  # it listens a little later than the broker itself
            return None

    assert until(found) == {"found.in-a-long-name", "found"}
    wrong = node.management_url.replace("//", "//guest:wrong@")
    with pytest.raises(BrokerUnavailable, match="401") as caught:
        find_queues(ours.model_copy(update={"rabbitmq_management_url": wrong}))
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "amqp://guest:hidden@127.0.0.1:{}//"])
def test_a_broker_that_does_not_answer_is_named(url: str) -> None:
    port = free_port()
    settings = Settings(
        broker_url=url.format(port), rabbitmq_management_url=f"http://127.0.0.1:{port}", broker_timeout_seconds=1.0
    )
    with pytest.raises(BrokerUnavailable, match=str(port)) as caught:
        find_queues(settings)
    assert "hidden" not in str(caught.value)


def count_added(settings: Settings) -> dict[str, int]:
    """Counters of added jobs, by queue. RabbitMQ gathers its own every five seconds."""
    backlogs = open_backlogs(settings)
    try:
        backlogs.read(["found"])
        return dict(backlogs.added)
    finally:
        backlogs.close()


def test_redis_counts_what_was_added_also_when_it_is_gone(redis_url: str, prefix: str) -> None:
    settings = Settings(broker_url=redis_url, prefix=prefix)
    assert count_added(settings) == {"found": 0}
    for _ in range(3):
        send_to(settings)
    consumer = open_consumer(redis_url, ["found"], name="w1", prefix=prefix, lease_seconds=30)
    consumer.open()
    consumer.ack(fetch(consumer, 3))
    consumer.close()
    assert count_added(settings) == {"found": 3, "found.in-a-long-name": 3}


@pytest.mark.rabbitmq
def test_rabbitmq_counts_what_was_published(node: RabbitmqNode, prefix: str) -> None:
    settings = Settings(broker_url=node.url, prefix=prefix, rabbitmq_management_url=node.management_url)
    for _ in range(3):
        send_to(settings)
    until(lambda: count_added(settings) == {"found": 3, "found.in-a-long-name": 3}, "RabbitMQ to gather its counters")
    unknown = Settings(broker_url=node.url, prefix=prefix, rabbitmq_management_url=f"http://127.0.0.1:{free_port()}")
    assert count_added(unknown) == {}


def test_arrivals_are_a_rate_of_the_last_minutes() -> None:
    arrivals = Arrivals()

    def rate_after(now: float, **added: int) -> float | None:
        arrivals.add(now, added)
        return arrivals.per_minute("a")

    assert rate_after(0, a=100, b=0) is None
    assert rate_after(5, a=150) is None
    assert rate_after(10, a=200) == 600
    assert arrivals.per_minute("b") is None, "it is not there any more"
    assert rate_after(20, a=200) == 300
    assert arrivals.seconds == 20
    assert rate_after(400, a=390) is None, "what is older than five minutes does not count, and one reading is left"
    assert rate_after(430, a=400) == 20
    assert rate_after(440, a=3) is None, "it counts again from 0"
    assert rate_after(450, a=6) == 18
    assert rate_after(460, b=1) is None
    for second in range(470, 2000):
        rate_after(second, a=second)
    assert arrivals.per_minute("a") == pytest.approx(60)
    assert len(arrivals._counts["a"]) <= 160
