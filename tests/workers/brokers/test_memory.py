"""The sender that keeps its envelopes in memory."""

from __future__ import annotations

import pytest
from support.brokers import envelope

from penstock.config.errors import QueueFull
from penstock.producers.senders import Sender
from penstock.producers.senders.memory import MemoryBroker


def test_the_memory_broker_keeps_envelopes_in_order() -> None:
    memory = MemoryBroker()
    sender: Sender = memory
    sender.send([envelope("a"), envelope("b", queue="reports")])
    sender.send([envelope("c")])
    assert [sent.id for sent in memory.sent] == ["a", "b", "c"]
    assert sender.depths(["emails", "reports", "none"]) == {"emails": 2, "reports": 1, "none": 0}


def test_the_memory_broker_refuses_a_call_past_the_limit_as_a_whole() -> None:
    memory = MemoryBroker(max_lengths={"emails": 2})
    with pytest.raises(QueueFull):
        memory.send([envelope(str(i)) for i in range(3)])
    assert memory.sent == []
    memory.send([envelope("a"), envelope("b"), envelope("r", queue="reports")])
    with pytest.raises(QueueFull):
        memory.send([envelope("c")])
