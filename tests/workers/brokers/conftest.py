from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from penstock.producers.senders import Sender, open_sender
from penstock.workers.brokers import Consumer, open_consumer


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue({"redis": "redis_url", "rabbitmq": "amqp_url"}[request.param])


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_sender(prefix: str, closing: ExitStack) -> Callable[..., Sender]:
    def make(url: str, **options: Any) -> Sender:
        sender = open_sender(url, prefix=prefix, **options)
        closing.callback(sender.close)
        return sender

    return make


@pytest.fixture
def make_consumer(prefix: str, closing: ExitStack) -> Callable[..., Consumer]:
    def make(url: str, *queues: str, name: str = "worker@test-1", lease_seconds: float = 15.0) -> Consumer:
        consumer = open_consumer(url, queues or ["emails"], name=name, prefix=prefix, lease_seconds=lease_seconds)
        consumer.open()
        closing.callback(consumer.close)
        return consumer

    return make


@pytest.fixture
def sender(broker_url: str, make_sender: Callable[..., Sender]) -> Sender:
    return make_sender(broker_url)


@pytest.fixture
def consumer(broker_url: str, make_consumer: Callable[..., Consumer]) -> Consumer:
    return make_consumer(broker_url)
