from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu import Connection, Producer
from support.ledgers import letter_of, letters, row_of, set_up, stock_envelope
from support.polling import until

from penstock.config.settings import QueueSettings, Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.schemas import State
from penstock.schemas.wire.codec import Envelope, decode
from penstock.workers.brokers import open_consumer
from penstock.workers.dispatcher.stock_clients import StockClients


@pytest.fixture
def ledger_url(sqlite_url: str) -> str:
    return set_up(sqlite_url)


@pytest.fixture
def service(ledger: Database, redis_url: str, prefix: str) -> Iterator[StockClients]:
    settings = Settings(
        broker_url=redis_url, prefix=prefix, stock_queues=(f"{prefix}-celery",), queues={"mine": QueueSettings()}
    )
    heartbeats.register(
        ledger, "w", engine="celery", queues=["far"], kinds={"far.away": "far"}, lease=timedelta(seconds=15)
    )
    stock = StockClients(settings, ledger)
    stock._refresh_queues()
    yield stock
    stock.close()


def route(service: StockClients, envelope: Envelope) -> str | None:
    routed = service.route(envelope, b"the raw bytes")
    return routed.queue if routed is not None else None


def test_a_known_kind_goes_to_its_own_queue_wherever_it_was_sent(service: StockClients) -> None:
    assert route(service, stock_envelope("ledger.note", {}, queue="celery")) == "notes"


def test_a_kind_known_to_a_worker_goes_to_the_queue_it_named(service: StockClients) -> None:
    assert route(service, stock_envelope("far.away", {}, queue="celery")) == "far"


def test_an_unknown_kind_on_a_queue_of_ours_is_left_to_its_worker(service: StockClients) -> None:
    assert route(service, stock_envelope("who.knows", {}, queue="mine")) == "mine"


def test_an_unknown_kind_on_the_stock_queue_is_a_dead_letter(service: StockClients, ledger: Database) -> None:
    envelope = stock_envelope("who.knows", {"a": 1}, queue="celery")
    assert route(service, envelope) is None
    assert (letter_of(ledger, envelope.id).reason, letter_of(ledger, envelope.id).raw) == (
        "unknown_kind",
        envelope.body,
    )


def test_bytes_that_are_not_a_message_are_a_dead_letter(service: StockClients, ledger: Database) -> None:
    assert route(service, Envelope("celery", "normal", {}, b"\xff")) is None
    assert [(letter.reason, letter.raw) for letter in letters(ledger)] == [("undecodable", b"the raw bytes")]


def test_a_job_with_an_eta_waits_in_the_ledger(service: StockClients, ledger: Database) -> None:
    eta = datetime.now(UTC) + timedelta(hours=1)
    envelope = stock_envelope("ledger.note", {}, queue="celery", args=("hi",), eta=eta.isoformat())
    assert route(service, envelope) is None
    row = row_of(ledger, envelope.id)
    assert (row.state, row.queue, row.due_at, json.loads(row.payload)) == (
        State.SCHEDULED,
        "notes",
        eta,
        {"text": "hi"},
    )
    past = (datetime.now(UTC) - timedelta(hours=1)).replace(tzinfo=None).isoformat()
    assert route(service, stock_envelope("ledger.note", {}, queue="celery", eta=past)) == "notes"


def test_an_eta_that_is_not_a_time_is_a_dead_letter(service: StockClients, ledger: Database) -> None:
    envelope = stock_envelope("ledger.note", {}, queue="celery", eta="soon")
    assert route(service, envelope) is None
    assert letter_of(ledger, envelope.id).reason == "undecodable"


def send_as_celery_does(url: str, queue: str, kind: str, kwargs: dict[str, Any]) -> str:
    envelope = stock_envelope(kind, kwargs, queue=queue)
    with Connection(url) as connection:
        Producer(connection).publish(
            json.loads(envelope.body),
            routing_key=queue,
            headers=envelope.headers,
            serializer="json",
            correlation_id=envelope.id,
        )
    return envelope.id


def test_messages_on_a_real_redis_reach_our_queues(
    service: StockClients, ledger: Database, redis_url: str, prefix: str
) -> None:
    stock_queue = f"{prefix}-celery"
    sent = send_as_celery_does(redis_url, stock_queue, "ledger.note", {"text": "from celery"})
    strange = send_as_celery_does(redis_url, stock_queue, "who.knows", {})
    consumer = open_consumer(redis_url, ["notes"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)
    service.start()
    try:
        consumer.open()
        [delivery] = until(lambda: consumer.fetch(10, 0.1))
        message = decode(delivery.envelope)
        assert (message.id, message.job.text) == (sent, "from celery")  # type: ignore[attr-defined]
        assert until(lambda: letter_of(ledger, strange)).reason == "unknown_kind"
        consumer.ack([delivery])
    finally:
        consumer.close()
        service.stop()
        assert service.join(60)


def test_rabbitmq_is_asked_often_while_clients_send(
    ledger: Database, amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = f"{prefix}-celery"
    service = StockClients(Settings(broker_url=amqp_url, prefix=prefix, stock_queues=(queue,)), ledger)
    try:
        with Connection(amqp_url) as connection:
            connection.SimpleQueue(queue).queue.declare()
        service.run_once()
        assert service.interval_seconds == 2
        send_as_celery_does(amqp_url, queue, "who.knows", {})
        until(lambda: service.run_once() or letters(ledger))
        assert service.interval_seconds == 0.2
        monkeypatch.setattr("penstock.workers.dispatcher.stock_clients._BUSY_SECONDS", 0.0)
        send_as_celery_does(amqp_url, queue, "who.knows", {})
        until(lambda: service.run_once() or len(letters(ledger)) == 2)
        service.run_once()
        assert service.interval_seconds == 2
    finally:
        service.close()
