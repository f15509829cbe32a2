"""A broker's own queues are found without the code that declares them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.polling import until
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server

from penstock.config.errors import BrokerUnavailable
from penstock.config.settings import Settings
from penstock.producers.senders import find_queues, open_sender_from
from penstock.schemas import Job
from penstock.schemas.wire.codec import encode
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
