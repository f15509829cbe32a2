"""Messages of stock clients that are moved to the queue of emails."""

from __future__ import annotations

import threading
from collections.abc import Callable

from support.brokers import fetch, ids
from support.polling import until

from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers import Consumer
from penstock.workers.brokers.stock.intake import StockIntake

MakeIntake = Callable[[], StockIntake]


def to_emails(envelope: Envelope, raw: bytes) -> Envelope:
    return Envelope("emails", envelope.priority, envelope.headers, envelope.body)


def move(intake: StockIntake, count: int) -> list[int]:
    """Move so many messages, ten at most at a time; returns how many each time."""
    counts: list[int] = []

    def are_moved() -> bool:
        counts.append(intake.take(10, to_emails))
        return sum(counts) == count

    until(are_moved, f"{count} messages")
    return counts


def assert_moved_once(sent: set[str], make_intake: MakeIntake, consumer: Consumer) -> None:
    """Let three intakes at once move the messages of these ids, and assert that each has arrived once."""
    counts: list[int] = []

    def dispatch(intake: StockIntake) -> None:
        while sum(counts) < len(sent):
            counts.append(intake.take(7, to_emails))

    threads = [threading.Thread(target=dispatch, args=(make_intake(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == len(sent)
    assert set(ids(fetch(consumer, len(sent)))) == sent
    assert consumer.fetch(1, 0.2) == []
