from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from support.brokers import Arrivals

from penstock.workers.brokers import Consumer, open_consumer


@pytest.fixture
def consumer(redis_url: str, prefix: str) -> Iterator[Consumer]:
    consumer = open_consumer(redis_url, ["notes", "ticks"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)
    consumer.open()
    yield consumer
    consumer.close()


@pytest.fixture
def arrived(consumer: Consumer) -> Arrivals:
    return Arrivals(consumer)
