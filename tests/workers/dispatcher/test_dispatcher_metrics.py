"""Metrics of a dispatcher: what it has sent and deleted, what waits for it, and the faults that it meets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from kombu import Connection, Producer, Queue
from ledger.queries.scraping import of, scrape
from support.ledgers import Note, attempt_outcome, claimed, message, set_up, stock_envelope
from support.polling import until
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server

from penstock.config.settings import Settings
from penstock.config.supervision import faults
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import schedules
from penstock.ledger.transitions.due import keep, waiting
from penstock.ledger.transitions.outcome import record
from penstock.producers.outbox import Outbox
from penstock.producers.senders import open_sender
from penstock.schemas import Outcome
from penstock.schemas.wire.codec import encode
from penstock.schemas.wire.ids import first_id
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.local.up.redis_server import RedisServer
from penstock.workers.telemetry.metrics.dispatcher_metrics import ROWS, dispatcher_collectors

REFUSES = "broker refuses writes"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.config.process.readings.EVERY_SECONDS", 0.25)


@pytest.fixture(params=["redis", pytest.param("amqp", marks=pytest.mark.rabbitmq)])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@dataclass
class Idle:
    """A dispatcher that does nothing."""

    settings: Settings
    database: Database

    def sent(self) -> Counter[str]:
        return Counter()

    def pruned(self) -> Counter[str]:
        return Counter()


@contextmanager
def dispatching(settings: Settings, count: int = 1) -> Iterator[list[Dispatcher]]:
    dispatchers = [Dispatcher(settings) for _ in range(count)]
    try:
        for dispatcher in dispatchers:
            dispatcher.start()
        yield dispatchers
    finally:
        for dispatcher in dispatchers:
            dispatcher.stop()


def add_due(ledger: Database, count: int, late: timedelta = timedelta()) -> None:
    keep(ledger, [waiting(encode(Note(), due_at=datetime.now(UTC) - late)) for _ in range(count)])


def test_what_was_sent_is_counted_by_where_it_came_from(broker_url: str, prefix: str, sqlite_url: str) -> None:
    ledger = Database(set_up(sqlite_url))
    stock = f"{prefix}-celery"
    settings = Settings(broker_url=broker_url, database_url=sqlite_url, prefix=prefix, stock_queues=(stock,))
    add_due(ledger, 3)
    ledger.write(lambda connection: [Outbox().enqueue(connection, Note()) for _ in range(4)])
    with Connection(broker_url) as connection:
        for _ in range(2):
            sent_by_celery = stock_envelope("ledger.note", {}, queue=stock)
            Producer(connection).publish(
                json.loads(sent_by_celery.body),
                routing_key=stock,
                declare=[Queue(stock, routing_key=stock)],
                headers=sent_by_celery.headers,
                serializer="json",
                correlation_id=sent_by_celery.id,
            )
    with dispatching(settings, 2) as dispatchers, ExitStack() as stack:
        collectors = [dispatcher_collectors(dispatcher) for dispatcher in dispatchers]
        for collector in (collector for each in collectors for collector in each):
            stack.callback(collector.close)

        def sent(source: str) -> float:
            name = f'penstock_dispatcher_sent_total{{source="{source}"}}'
            return sum(scrape(*each)[name] for each in collectors)

        until(lambda: (sent("due"), sent("outbox"), sent("stock")) == (3, 4, 2))
        assert sent("workflow") == 0
        until(lambda: scrape(*collectors[0]).get("penstock_dispatchers") == 2, "both dispatchers")
        until(lambda: scrape(*collectors[0]).get('penstock_queue_depth{queue="notes"}') == 9)
    ledger.close()


def test_what_waits_for_a_dispatcher_is_counted(ledger: Database, ledger_url: str, redis_url: str, prefix: str) -> None:
    settings = Settings(broker_url=redis_url, database_url=ledger_url, prefix=prefix, stock_queues=())
    late = timedelta(minutes=5)
    add_due(ledger, 2, late)
    add_due(ledger, 1)
    add_due(ledger, 5, -late)
    past = datetime.now(UTC) - late
    row = {"source": "made", "rule": "{}"}
    values = [
        {"name": "late", "next_at": past, "due_at": past, **row},
        {"name": "paused", "next_at": past - late, "due_at": None, **row},
    ]
    ledger.write(lambda connection: connection.execute(sa.insert(schedules), values))
    for slot in ("ledger.note/1-at-a-time:", "mails/rate:one", "mails/rate:two"):
        later = datetime.now(UTC) + timedelta(hours=1)
        outcome = attempt_outcome(claimed(ledger, message(Note())), Outcome.SNOOZED, due_at=later, waits_for=slot)
        record(ledger, [outcome], worker="w1")
    with ExitStack() as stack:
        collectors = dispatcher_collectors(Idle(settings, ledger))
        for collector in collectors:
            stack.callback(collector.close)
        values_of = until(
            lambda: values if of(values := scrape(*collectors), "penstock_limit_waiting") else None, "the last of them"
        )
        assert values_of["penstock_dispatcher_due"] == 3
        assert 299 < values_of["penstock_dispatcher_lateness_seconds"] < 600
        assert 299 < values_of["penstock_schedule_lateness_seconds"] < 600
        assert of(values_of, "penstock_limit_waiting") == {
            'penstock_limit_waiting{limit="ledger.note/1-at-a-time"}': 1,
            'penstock_limit_waiting{limit="mails/rate"}': 2,
        }
        assert of(values_of, "penstock_pruned_total") == {f'penstock_pruned_total{{rows="{rows}"}}': 0 for rows in ROWS}


def test_rows_that_retention_deletes_are_counted(redis_url: str, prefix: str, sqlite_url: str) -> None:
    ledger = Database(set_up(sqlite_url))
    settings = Settings(broker_url=redis_url, database_url=sqlite_url, prefix=prefix, stock_queues=())
    for number, outcome in enumerate((Outcome.SUCCEEDED, Outcome.DISCARDED, Outcome.SUCCEEDED)):
        old = first_id(datetime.now(UTC) - timedelta(days=60))[:-1] + str(number)
        record(ledger, [attempt_outcome(claimed(ledger, message(Note(), id=old)), outcome)], worker="w1")
    long_ago = "UPDATE penstock_jobs SET finished_at = '2020-01-01 00:00:00.000000', enqueued_at = finished_at"
    ledger.write(lambda connection: connection.execute(sa.text(long_ago)))
    with dispatching(settings) as [dispatcher]:
        collectors = dispatcher_collectors(dispatcher)
        dispatcher._retention._pass_at = 0.0
        until(lambda: scrape(*collectors)['penstock_pruned_total{rows="jobs"}'] == 3)
        for collector in collectors:
            collector.close()
    ledger.close()


def test_a_full_redis_is_a_fault_of_its_own(own_redis: RedisServer, prefix: str, sqlite_url: str) -> None:
    ledger = Database(set_up(sqlite_url))
    settings = Settings(broker_url=own_redis.url, database_url=sqlite_url, prefix=prefix, stock_queues=())
    before = faults[REFUSES]
    with redis.Redis.from_url(own_redis.url) as client, dispatching(settings):
        until(lambda: client.exists(f"{prefix}:incarnation"), "a dispatcher that runs")
        client.config_set("maxmemory", 1)
        add_due(ledger, 1)
        until(lambda: faults[REFUSES] > before)
        client.config_set("maxmemory", 0)
        until(lambda: client.xlen(f"{prefix}:{{notes}}:normal") == 1, "the job")
    ledger.close()


@pytest.mark.rabbitmq
def test_so_is_a_rabbitmq_with_an_alarm(prefix: str, sqlite_url: str, tmp_path: Path) -> None:
    if find_rabbitmq_server() is None:
        pytest.skip("no rabbitmq-server on this machine")
    node = RabbitmqNode(tmp_path / "rabbitmq")
    node.start()
    ledger = Database(set_up(sqlite_url))
    settings = Settings(
        broker_url=node.url, database_url=sqlite_url, prefix=prefix, stock_queues=(), broker_timeout_seconds=1.0
    )
    before = faults[REFUSES]
    sender = open_sender(node.url, prefix=prefix)
    try:
        sender.send([encode(Note())])
        node.set_alarm()
        with dispatching(settings):
            add_due(ledger, 1)
            until(lambda: faults[REFUSES] > before)
            node.clear_alarms()
            until(lambda: sender.depths(["notes"])["notes"] >= 2, "the job, or copies that were not confirmed")
    finally:
        sender.close()
        node.kill()
        ledger.close()
