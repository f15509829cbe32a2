from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.producers import Producer
from penstock.producers.senders.memory import MemoryBroker


@pytest.fixture
def sender() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def producer(sender: MemoryBroker, ledger_url: str) -> Iterator[Producer]:
    with Producer("redis://unused", sender=sender, database_url=ledger_url, queues=["listed"]) as producer:
        yield producer
