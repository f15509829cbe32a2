from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.ledgers import Note, Tick, letters, row_of

from penstock.config.errors import LedgerUnavailable, QueueFull
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions.due import schedule
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import State
from penstock.schemas.wire.codec import Envelope, encode
from penstock.workers.brokers import Delivery
from penstock.workers.dispatcher import inbox as intake_module
from penstock.workers.dispatcher.due_jobs import DueJobs
from penstock.workers.dispatcher.inbox import Inbox

HOUR = timedelta(hours=1)


class Consumer:
    """Hands out these envelopes, and records how they were settled."""

    def __init__(self, *envelopes: Envelope, dead: tuple[Envelope, ...] = ()) -> None:
        self.queues = {"dispatcher"}
        self.opened = 0
        self.acked: list[str] = []
        self.released: list[str] = []
        self._waiting = [self._delivery(envelope) for envelope in envelopes]
        self._dead = [self._delivery(envelope) for envelope in dead]

    def _delivery(self, envelope: Envelope) -> Delivery:
        return Delivery(envelope, envelope.body, 1, None, self)  # type: ignore[arg-type]

    def open(self) -> None:
        self.opened += 1

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        deliveries, self._waiting = self._waiting, []
        return deliveries

    def drain_dead(self, limit: int) -> list[Delivery]:
        deliveries, self._dead = self._dead, []
        return deliveries

    def ack(self, deliveries: list[Delivery]) -> None:
        self.acked += [delivery.envelope.id for delivery in deliveries]

    def release(self, deliveries: list[Delivery]) -> None:
        self.released += [delivery.envelope.id for delivery in deliveries]

    def add_queue(self, queue: str) -> None: ...

    def cancel_queue(self, queue: str) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def test_delayed_jobs_are_kept_and_unreadable_ones_buried_before_they_are_acknowledged(ledger: Database) -> None:
    good = encode(Note(), due_at=datetime.now(UTC) + HOUR)
    bad = Envelope("dispatcher", "normal", {"id": "bad", "task": "ledger.note"}, b"no json")
    junk = Envelope("dispatcher", "normal", {}, b"\xff\xfe")
    consumer = Consumer(good, bad, junk)
    Inbox(ledger, consumer, timedelta(seconds=15)).run_once()
    assert row_of(ledger, good.id).state == State.SCHEDULED
    assert {(letter.kind, letter.raw) for letter in letters(ledger)} == {
        ("ledger.note", b"no json"),
        (None, b"\xff\xfe"),
    }
    assert consumer.acked == [good.id, "bad", ""]


def test_a_message_that_comes_again_is_kept_once(ledger: Database) -> None:
    good = encode(Note(), due_at=datetime.now(UTC) + HOUR)
    consumer = Consumer(good, good)
    Inbox(ledger, consumer, timedelta(seconds=15)).run_once()
    assert row_of(ledger, good.id) is not None
    assert consumer.acked == [good.id, good.id]


def test_a_delivery_that_the_broker_gave_up_on_is_buried(ledger: Database) -> None:
    dropped = encode(Note())
    consumer = Consumer(dead=(dropped,))
    Inbox(ledger, consumer, timedelta(seconds=15)).run_once()
    assert [letter.reason for letter in letters(ledger)] == ["delivery_limit"]
    assert consumer.acked == [dropped.id]


def test_fetched_deliveries_are_held_while_the_ledger_is_unavailable(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released, it would be delivered again at once, and RabbitMQ drops a message after twenty deliveries."""

    def unavailable(*_: object) -> None:
        raise LedgerUnavailable("unavailable")

    envelope = encode(Note(), due_at=datetime.now(UTC) + HOUR)
    consumer = Consumer(envelope)
    intake = Inbox(ledger, consumer, timedelta(seconds=15))
    with monkeypatch.context() as outage:
        outage.setattr(intake_module, "keep", unavailable)
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                intake.run_once()
    assert (consumer.acked, consumer.released) == ([], [])
    intake.run_once()
    assert (consumer.acked, consumer.released) == ([envelope.id], [])
    assert row_of(ledger, envelope.id).state == State.SCHEDULED


def test_a_message_that_the_database_refuses_does_not_stop_the_others(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [encode(Note(text=str(number)), due_at=datetime.now(UTC) + HOUR) for number in range(9)]

    def keep(database: Database, rows: list[dict[str, object]]) -> None:
        if sent[4].id in [row["id"] for row in rows]:
            raise ValueError("too large")
        due.keep(database, rows)

    monkeypatch.setattr(intake_module, "keep", keep)
    consumer = Consumer(*sent)
    with pytest.raises(ValueError, match="too large"):
        Inbox(ledger, consumer, timedelta(seconds=15)).run_once()
    assert consumer.released == [sent[4].id]
    assert sorted(consumer.acked) == sorted(job.id for job in sent if job is not sent[4])
    assert row_of(ledger, sent[8].id).state == State.SCHEDULED


def test_a_full_queue_does_not_hold_up_the_others(ledger: Database) -> None:
    class Full(MemoryBroker):
        def send(self, envelopes: object) -> None:
            if any(envelope.queue == "notes" for envelope in envelopes):  # type: ignore[attr-defined]
                raise QueueFull("notes", 1)
            super().send(envelopes)  # type: ignore[arg-type]

    broker, now = Full(), datetime.now(UTC)
    note, tick = encode(Note(), due_at=now - HOUR), encode(Tick(), due_at=now)
    schedule(ledger, [note, tick])
    service = DueJobs(ledger, broker)
    assert service.run_once()
    service.run_once()
    assert broker.depths(["ticks", "notes"]) == {"ticks": 1, "notes": 0}
    assert row_of(ledger, note.id).state == State.SCHEDULED
