"""A producer in a web backend: the messages it sends, and the jobs it refuses on the spot."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from support.polling import until

from penstock.config.errors import BrokerUnavailable, ConfigError, InvalidJob, PayloadTooLarge, QueueFull, UnknownQueue
from penstock.config.settings import QueueSettings, Settings
from penstock.producers import AsyncProducer, Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job
from penstock.schemas.wire.codec import HEADER, decode
from penstock.workers.brokers import open_consumer
from penstock.workers.local.up.redis_server import RedisServer


class Pay(Job, kind="prod.pay", queue="prod", unique_by=("order",)):
    order: int
    text: str = ""


class Fleeting(Job, kind="prod.fleeting", queue="prod", expires_in=60, priority="low"): ...


@pytest.fixture
def sender() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def producer(sender: MemoryBroker) -> Iterator[Producer]:
    with Producer("redis://unused", sender=sender, queues=["listed"]) as producer:
        yield producer


def test_options_all_travel(producer: Producer, sender: MemoryBroker) -> None:
    handle = producer.enqueue(
        Pay(order=1), priority="high", key="k", tenant="acme", expires_in=60, traceparent="00-x-y-01"
    )
    [envelope] = sender.sent
    message = decode(envelope)
    assert (envelope.queue, envelope.priority, message.id, message.job) == ("prod", "high", handle.id, Pay(order=1))
    assert (message.key, message.tenant, message.traceparent) == ("k", "acme", "00-x-y-01")
    assert message.expires_at is not None
    assert timedelta(seconds=50) < message.expires_at - datetime.now(UTC) <= timedelta(seconds=60)


def test_omitted_options_come_from_the_kind(producer: Producer, sender: MemoryBroker) -> None:
    producer.enqueue(Pay(order=7))
    producer.enqueue(Fleeting())
    paid, fleeting = map(decode, sender.sent)
    assert paid.key == "prod.pay:order=7"
    assert fleeting.priority == "low"
    assert fleeting.expires_at is not None


@pytest.mark.parametrize(
    "options", [{"delay": timedelta(hours=1)}, {"delay": 3600}, {"run_at": datetime.now(UTC) + timedelta(hours=1)}]
)
def test_a_job_for_later_goes_to_the_dispatcher(
    producer: Producer, sender: MemoryBroker, options: dict[str, Any]
) -> None:
    handle = producer.enqueue(Pay(order=1), **options)
    [envelope] = sender.sent
    assert envelope.queue == "dispatcher"
    assert (decode(envelope).queue, handle.queue) == ("prod", "prod")
    assert decode(envelope).due_at is not None


@pytest.mark.parametrize("options", [{"delay": 0}, {"run_at": datetime.now(UTC) - timedelta(hours=1)}, {}])
def test_a_job_whose_time_has_come_goes_straight_to_its_queue(
    producer: Producer, sender: MemoryBroker, options: dict[str, Any]
) -> None:
    producer.enqueue(Pay(order=1), **options)
    assert sender.sent[0].queue == "prod"
    assert "due_at" not in sender.sent[0].headers[HEADER]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"priority": "urgent"}, InvalidJob, "high, normal, low"),
        ({"delay": -1}, InvalidJob, "negative"),
        ({"delay": 1, "run_at": datetime.now(UTC)}, InvalidJob, "not both"),
        ({"run_at": datetime(2030, 1, 1)}, InvalidJob, "time zone"),
        ({"delay": 60, "expires_in": 30}, InvalidJob, "expires"),
        ({"expires_in": 0}, InvalidJob, "expires"),
        ({"queue": "nowhere"}, UnknownQueue, r"unknown queue 'nowhere'.*listed"),
    ],
)
def test_a_wrong_option_is_refused_at_once(
    producer: Producer, sender: MemoryBroker, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        producer.enqueue(Pay(order=1), **options)
    assert sender.sent == []


def test_a_listed_queue_is_known(producer: Producer, sender: MemoryBroker) -> None:
    producer.enqueue(Pay(order=1), queue="listed")
    assert sender.sent[0].queue == "listed"


def test_an_object_that_is_not_a_job_is_refused(producer: Producer) -> None:
    with pytest.raises(InvalidJob, match="dict"):
        producer.enqueue({"order": 1})  # type: ignore[arg-type]


def test_a_batch_with_a_wrong_job_is_refused_as_a_whole(producer: Producer, sender: MemoryBroker) -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        producer.enqueue_many([Pay(order=1), Pay(order=2, text="x" * 300_000)])
    assert "number 1" in caught.value.__notes__[0]
    assert sender.sent == []


def test_a_given_id_is_kept(producer: Producer) -> None:
    assert producer.enqueue(Pay(order=1), id="order-1").id == "order-1"


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "", "sqs://"])
def test_an_unknown_broker_url_says_which_are_known(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://"):
        Producer(url)


def test_settings_give_the_limit_and_the_queues(redis_url: str, prefix: str) -> None:
    settings = Settings(
        broker_url=redis_url, prefix=prefix, max_payload_bytes=1024, queues={"prod": QueueSettings(max_length=2)}
    )
    with Producer.from_settings(settings) as producer:
        with pytest.raises(PayloadTooLarge):
            producer.enqueue(Pay(order=1, text="x" * 2000))
        producer.enqueue_many([Pay(order=1), Pay(order=2)])
        with pytest.raises(QueueFull, match="max_length of 2"):
            producer.enqueue(Pay(order=3))


@pytest.fixture
def dead_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word, as a host behind a wrong firewall may."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_a_broker_that_is_down_is_named_in_bounded_time(
    scheme: str, kind: str, dead_port: int, silent_port: int
) -> None:
    port = dead_port if kind == "dead" else silent_port
    with Producer(f"{scheme}://user:s3cret@127.0.0.1:{port}/", timeout=0.5) as producer:
        for call in (producer.ping, lambda: producer.enqueue(Pay(order=1))):
            with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}") as caught:
                call()
            assert "s3cret" not in str(caught.value)


async def _down(scheme: str, port: int) -> None:
    async with AsyncProducer(f"{scheme}://127.0.0.1:{port}/", timeout=0.5) as producer:
        with pytest.raises(BrokerUnavailable, match=str(port)):
            await producer.enqueue(Pay(order=1))


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_an_async_producer_names_it_too(scheme: str, dead_port: int, silent_port: int) -> None:
    asyncio.run(_down(scheme, dead_port))
    asyncio.run(_down(scheme, silent_port))


def test_an_async_producer_does_not_wait_for_a_redis_that_falls_silent(own_redis: RedisServer, prefix: str) -> None:
    async def send() -> None:
        async with AsyncProducer(own_redis.url, prefix=prefix) as producer:
            jobs = [Pay(order=number) for number in range(120)]  # more than share a timeout
            assert len(await producer.enqueue_many(jobs)) == 120
            client.client_pause(600_000, all=False)
            with pytest.raises(BrokerUnavailable, match="no reply within 5 s"):
                await producer.enqueue(Pay(order=1))
            client.client_unpause()
            assert len(await producer.enqueue_many(jobs)) == 120

    with redis.Redis.from_url(own_redis.url) as client:
        asyncio.run(send())


@pytest.fixture(params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("redis_url" if request.param == "redis" else "amqp_url"))


def fetched(url: str, prefix: str, count: int) -> list[Any]:
    consumer = open_consumer(url, ["prod"], name="test", prefix=prefix)
    consumer.open()
    messages: list[Any] = []

    def have_come() -> bool:
        consumer.ack(deliveries := consumer.fetch(1000, 5))
        messages.extend(decode(delivery.envelope) for delivery in deliveries)
        return len(messages) >= count

    until(have_come, f"{count} messages")
    consumer.close()
    return messages


def test_an_async_producer_sends_the_same(url: str, prefix: str) -> None:
    async def send() -> list[str]:
        async with AsyncProducer(url, prefix=prefix) as producer:
            await producer.ping()
            single = await producer.enqueue(Pay(order=0), tenant="acme")
            many = await producer.enqueue_many([Pay(order=number) for number in range(1, 300)])
            return [single.id, *(handle.id for handle in many)]

    ids = asyncio.run(send())
    messages = fetched(url, prefix, 300)
    assert [message.id for message in messages] == ids
    assert [message.job.order for message in messages] == list(range(300))
    assert messages[0].tenant == "acme"


def test_an_async_producer_serves_several_loops(url: str, prefix: str) -> None:
    producer = AsyncProducer(url, prefix=prefix)

    async def send(order: int) -> None:
        await asyncio.gather(*(producer.enqueue(Pay(order=order)) for _ in range(20)))
        await producer.close()

    threads = [threading.Thread(target=lambda order=order: asyncio.run(send(order))) for order in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(send(3))
    assert len(fetched(url, prefix, 80)) == 80


def test_a_closed_producer_connects_again(url: str, prefix: str) -> None:
    producer = Producer(url, prefix=prefix)
    producer.enqueue(Pay(order=1))
    producer.close()
    producer.enqueue(Pay(order=2))
    producer.close()
    assert [message.job.order for message in fetched(url, prefix, 2)] == [1, 2]
