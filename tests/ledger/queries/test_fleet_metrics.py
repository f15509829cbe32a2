"""Metrics of the whole installation: against real queues, workers, dead letters and outboxes, and in outages."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from ledger.queries.scraping import of, scrape
from support.brokers import envelope, fetch
from support.ledgers import LEASE, Note, set_up
from support.polling import until
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server

from penstock.config.process.readings import REST, Readings
from penstock.config.settings import QueueSettings, Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.queries.fleet_metrics import GAUGES, MOST_DEAD_LETTERS, MOST_QUEUES, FleetMetrics
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, workflows
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.outbox import Outbox, create_outbox
from penstock.producers.senders import open_backlogs, open_sender
from penstock.producers.senders.rabbitmq.backlogs import MOST_SAMPLES, LaneAge
from penstock.producers.senders.rabbitmq.names import lane_name
from penstock.producers.senders.rabbitmq.publisher import connect, count_lanes
from penstock.workers.brokers import open_consumer
from penstock.workers.local.up.redis_server import RedisServer, free_port

Start = Callable[[Settings, Database], FleetMetrics]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Metrics that are read twenty times as often."""
    monkeypatch.setattr("penstock.config.process.readings.EVERY_SECONDS", 0.25)
    monkeypatch.setattr("penstock.producers.senders.redis.backlogs._FIND_EVERY_SECONDS", 0.5)
    with ExitStack() as stack:

        def start(settings: Settings, ledger: Database) -> FleetMetrics:
            metrics = FleetMetrics(settings, ledger, open_backlogs(settings))
            stack.callback(ledger.close)
            stack.callback(metrics.close)
            metrics.start()
            return metrics

        yield start


def settings_for(broker_url: str, prefix: str, **more: Any) -> Settings:
    # No management API answers there, whatever this machine has.
    more.setdefault("rabbitmq_management_url", f"http://127.0.0.1:{free_port()}")
    return Settings(broker_url=broker_url, prefix=prefix, **more)


def add_members(ledger: Database) -> None:
    for number in (1, 2):
        heartbeats.register(
            ledger,
            f"w{number}",
            engine="celery",
            queues=["notes", "ticks"],
            kinds={"ledger.note": "notes"},
            lease=LEASE,
        )
    for number in (1, 2, 3):
        lease = LEASE if number < 3 else -LEASE
        queues = ["dispatcher"]
        heartbeats.register(ledger, f"d{number}", engine=heartbeats.DISPATCHER, queues=queues, kinds={}, lease=lease)


def add_dead_letters(ledger: Database, *rows: tuple[str, str | None, int], **fields: Any) -> None:
    def insert_rows(connection: sa.Connection) -> None:
        common = {"reason": "failed", "detail": "", "fingerprint": "", "created_at": datetime.now(UTC), **fields}
        values = [
            {"id": f"{queue[:8]}-{place}-{number}", "queue": queue, "kind": kind, **common}
            for place, (queue, kind, count) in enumerate(rows)
            for number in range(count)
        ]
        connection.execute(sa.insert(dead_letters), values)

    ledger.write(insert_rows)


def check_numbers(metrics: FleetMetrics, ledger: Database, *, oldest: bool) -> None:
    """Compare with what `test_the_numbers_…` has made."""

    def read_all() -> dict[str, float] | None:
        values = scrape(metrics)
        is_complete = all(of(values, name) for name in GAUGES if oldest or name != "penstock_queue_oldest_seconds")
        return values if is_complete and values['penstock_queue_consumers{queue="notes"}'] == 2 else None

    values = until(read_all, "all numbers")
    assert values['penstock_queue_depth{queue="notes"}'] == 3
    assert values['penstock_queue_depth{queue="ticks"}'] == 0
    assert values['penstock_queue_consumers{queue="notes"}'] == 2
    assert values['penstock_queue_consumers{queue="planned"}'] == 0
    assert values['penstock_queue_consumers{queue="dispatcher"}'] == 2
    assert values['penstock_workers{engine="celery"}'] == 2
    assert values['penstock_workers{engine="dramatiq"}'] == 0
    assert values["penstock_dispatchers"] == 2
    assert of(values, "penstock_dead_letters") == {
        'penstock_dead_letters{kind="ledger.note",queue="notes"}': 2,
        'penstock_dead_letters{kind="",queue="notes"}': 1,
    }
    assert values['penstock_outbox_jobs{outbox="ledger"}'] == 1
    assert values['penstock_outbox_lag_seconds{outbox="ledger"}'] >= 0
    assert of(values, "penstock_workflows_resting") == {'penstock_workflows_resting{kind="wf.old"}': 1}
    assert ('penstock_queue_oldest_seconds{queue="notes"}' in values) is oldest
    assert values['penstock_queue_oldest_seconds{queue="ticks"}'] == 0
    until(lambda: scrape(metrics)["penstock_fleet_age_seconds"] < 30, "fresh numbers")


def fill(settings: Settings, ledger: Database) -> None:
    add_members(ledger)
    add_dead_letters(ledger, ("notes", "ledger.note", 2), ("notes", None, 1))
    add_dead_letters(ledger, ("settled", "ledger.note", 4), replayed_at=datetime.now(UTC))
    ledger.write(lambda connection: Outbox().enqueue(connection, Note()))
    common = {"kind": "wf.old", "definition": "", "graph": "{}", "undo": True, "started_at": datetime.now(UTC)}
    rows = [{"id": "1", "state": "running", "error": "rests: its code was changed"}, {"id": "2", "state": "running"}]
    for row in rows:
        insert = sa.insert(workflows).values(common | row)
        ledger.write(lambda connection, insert=insert: connection.execute(insert))
    with_sender(settings, [envelope(str(number), "notes") for number in range(3)])


def with_sender(settings: Settings, envelopes: list[Any]) -> None:
    sender = open_sender(settings.broker_url, prefix=settings.prefix)
    sender.send(envelopes)
    sender.close()


def test_the_numbers_are_those_of_the_broker_and_the_ledger(
    ledger: Database, redis_url: str, prefix: str, start: Start
) -> None:
    queues = {"planned": QueueSettings(engine="dramatiq")}
    settings = settings_for(redis_url, prefix, database_url=ledger.url, queues=queues)
    fill(settings, ledger)
    check_numbers(start(settings, ledger), ledger, oldest=True)


@pytest.mark.rabbitmq
def test_the_numbers_are_those_of_a_rabbitmq_that_gets_no_queue_for_them(
    amqp_url: str, prefix: str, sqlite_url: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Database(set_up(sqlite_url))
    queues = {"planned": QueueSettings(engine="dramatiq")}
    settings = settings_for(amqp_url, prefix, database_url=ledger.url, queues=queues)
    fill(settings, ledger)
    check_numbers(start(settings, ledger), ledger, oldest=False)
    assert len([record for record in caplog.records if "the ages of queues are not known" in record.message]) == 1
    connection = connect(amqp_url, timeout_seconds=10)
    lanes = {lane_name(prefix, queue, "normal") for queue in ("notes", "ticks", "planned", "dispatcher")}
    there = {lane for lane, count in count_lanes(connection, lanes).items() if count is not None}
    connection.close()
    assert there == {lane_name(prefix, "notes", "normal")}
    ledger.close()


def test_the_oldest_on_redis_is_the_first_that_no_worker_has_fetched(
    redis_url: str, prefix: str, sqlite_url: str
) -> None:
    settings = settings_for(redis_url, prefix, database_url=sqlite_url)
    backlogs = open_backlogs(settings)
    consumer = open_consumer(redis_url, ["emails"], name="c", prefix=prefix)
    try:
        assert backlogs.read(["emails"])["emails"] == (0, 0)
        with redis.Redis.from_url(redis_url) as client:
            seconds, microseconds = client.time()
            now = seconds * 1000 + microseconds // 1000
            for number, (lane, age) in enumerate((("high", 20), ("normal", 600), ("normal", 10), ("low", 40))):
                fields = {"h": json.dumps({"lang": "py", "task": "t", "id": str(number)}), "b": "[[],{},null]"}
                client.xadd(f"{prefix}:{{emails}}:{lane}", fields, id=f"{now - age * 1000}-0")  # type: ignore[arg-type]
        jobs, oldest = backlogs.read(["emails"])["emails"]
        assert (jobs, 600 <= (oldest or 0) < 700) == (4, True)
        consumer.open()
        held = fetch(consumer, 1) + fetch(consumer, 1)  # the high lane, then the first of the normal one
        jobs, oldest = backlogs.read(["emails"])["emails"]
        assert (jobs, 40 <= (oldest or 0) < 140) == (2, True)
        consumer.ack(held)
        assert backlogs.read(["emails"])["emails"][0] == 2
        consumer.ack(fetch(consumer, 2))
        assert backlogs.read(["emails"])["emails"] == (0, 0)
    finally:
        consumer.close()
        backlogs.close()


def test_a_key_of_another_type_does_not_hide_the_other_queues(redis_url: str, prefix: str, sqlite_url: str) -> None:
    settings = settings_for(redis_url, prefix, database_url=sqlite_url)
    with_sender(settings, [envelope("1")])
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{prefix}:{{odd}}:normal", "no stream")
    backlogs = open_backlogs(settings)
    by_queue = backlogs.read(["none"])
    backlogs.close()
    assert {queue: backlog.jobs for queue, backlog in by_queue.items()} == {"emails": 1, "none": 0, "odd": 0}


@pytest.mark.rabbitmq
def test_the_oldest_on_rabbitmq_is_known_from_what_was_delivered(
    prefix: str, sqlite_url: str, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_rabbitmq_server() is None:
        pytest.skip("no rabbitmq-server on this machine")
    node = RabbitmqNode(tmp_path / "rabbitmq", management=True)
    node.start()
    monkeypatch.setattr("penstock.producers.senders.rabbitmq.backlogs.LOOK_AGAIN_SECONDS", 0.5)
    ledger = Database(set_up(sqlite_url))
    settings = settings_for(node.url, prefix, database_url=ledger.url, rabbitmq_management_url=node.management_url)
    consumer = open_consumer(node.url, ["emails"], name="c", prefix=prefix)
    try:
        with_sender(settings, [envelope("1"), envelope("2")])
        metrics, sent_at = start(settings, ledger), time.monotonic()

        def oldest() -> float | None:
            return scrape(metrics).get('penstock_queue_oldest_seconds{queue="emails"}')

        until(lambda: (oldest() or 0) > 1, "an age")
        assert (oldest() or 0) <= time.monotonic() - sent_at
        with_sender(settings, [envelope("3")])
        until(lambda: scrape(metrics)['penstock_queue_depth{queue="emails"}'] == 3)
        consumer.open()
        consumer.ack(fetch(consumer, 3))
        until(lambda: oldest() == 0, "an empty queue")
        consumer.close()
        until(lambda: scrape(metrics)['penstock_queue_depth{queue="emails"}'] == 0)
        with_sender(settings, [envelope("4")])
        until(lambda: (oldest() or 0) > 0, "the age of the next one")
    finally:
        consumer.close()
        node.kill()
        ledger.close()


def test_an_age_on_rabbitmq_is_that_of_the_first_reading_whose_messages_still_wait() -> None:
    lane = LaneAge()
    assert lane.update(0, ready=0, delivered=7) == 0
    assert lane.update(5, ready=10, delivered=7) == 0
    assert lane.update(10, ready=10, delivered=7) == 5
    assert lane.update(15, ready=15, delivered=7) == 10
    assert lane.update(20, ready=9, delivered=13) == 15, "4 of the first 10 still wait"
    assert lane.update(25, ready=5, delivered=17) == 10, "the first 10 are gone; 5 came by 15"
    assert lane.update(30, ready=5, delivered=2) == 15, "RabbitMQ was restarted, and counts from 0"
    assert lane.update(35, ready=0, delivered=2) == 0
    for number in range(3 * MOST_SAMPLES):
        assert lane.update(40 + number, ready=number + 1, delivered=2) == number
    assert len(lane._entered) <= MOST_SAMPLES


def test_during_an_outage_what_is_unknown_is_left_out_and_the_age_grows(
    own_redis: RedisServer, prefix: str, sqlite_url: str, tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Database(sqlite_url)  # not set up yet, so it does not answer either
    shop = f"sqlite:///{tmp_path / 'shop.db'}"
    more = {"outbox_urls": (shop,), "broker_timeout_seconds": 1.0}
    settings = settings_for(own_redis.url, prefix, database_url=sqlite_url, **more)
    with_sender(settings, [envelope("1")])
    metrics = start(settings, ledger)
    depth = 'penstock_queue_depth{queue="emails"}'
    until(lambda: depth in scrape(metrics), "the depth, without a ledger")
    assert not of(scrape(metrics), "penstock_dispatchers")
    upgrade(ledger)
    until(lambda: "penstock_dispatchers" in scrape(metrics), "the ledger's numbers")
    waiting = f'penstock_outbox_jobs{{outbox="{tmp_path / "shop.db"}"}}'
    assert waiting not in scrape(metrics)
    until(lambda: scrape(metrics)["penstock_fleet_age_seconds"] > 1, "an age, for want of an outbox")
    engine = sa.create_engine(shop)
    create_outbox(engine)
    engine.dispose()
    until(lambda: scrape(metrics)["penstock_fleet_age_seconds"] < 1, "fresh numbers")
    assert waiting in scrape(metrics)
    own_redis.stop()
    until(lambda: depth not in scrape(metrics), "the broker's numbers to be left out")
    assert "penstock_dispatchers" in scrape(metrics)
    until(lambda: scrape(metrics)["penstock_fleet_age_seconds"] > 2, "an age that grows")
    own_redis.start()
    until(lambda: depth in scrape(metrics), "the broker's numbers", unless=None)
    until(lambda: scrape(metrics)["penstock_fleet_age_seconds"] < 2, "fresh numbers again")
    metrics.close()
    ledger.close()
    lines = [record.getMessage() for record in caplog.records if record.name == "penstock.metrics"]
    assert len([line for line in lines if line.startswith("metrics of queues are left out")]) <= 4
    assert len([line for line in lines if line.startswith("metrics of workers are left out")]) == 1
    assert "metrics of queues are read again" in lines
    assert all(record.levelno < logging.ERROR for record in caplog.records)


def test_a_scrape_makes_no_query_however_many_rows_there_are(
    ledger: Database, redis_url: str, prefix: str, start: Start
) -> None:
    add_dead_letters(ledger, *((f"queue-{number}", f"kind-{number}", 100) for number in range(50)))
    metrics = start(settings_for(redis_url, prefix, database_url=ledger.url), ledger)
    until(lambda: len(of(scrape(metrics), "penstock_dead_letters")) == 50, "all dead letters")
    scraped: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            scraped.append(statement)

    sa.event.listen(ledger.engine, "before_cursor_execute", note)
    try:
        for _ in range(20):
            values = scrape(metrics)
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", note)
    assert scraped == []
    assert values['penstock_dead_letters{kind="kind-7",queue="queue-7"}'] == 100


def test_names_that_strangers_choose_make_no_more_series_than_there_may_be(
    ledger: Database, redis_url: str, prefix: str, start: Start
) -> None:
    evil = 'x"} 1\npenstock_evil{a="' + "y" * 60
    strange = [("notes", f"{evil}{number}", 2) for number in range(MOST_DEAD_LETTERS + 100)]
    add_dead_letters(ledger, *strange, ("notes", "ledger.note", 1))
    settings = settings_for(redis_url, prefix, database_url=ledger.url)
    with redis.Redis.from_url(redis_url) as client:
        for number in range(MOST_QUEUES + 50):
            client.xadd(f"{prefix}:{{{evil}{number}}}:normal", {"h": "", "b": ""})
    metrics = start(settings, ledger)
    until(lambda: len(of(scrape(metrics), "penstock_queue_depth")) >= MOST_QUEUES, "the queues of strangers")
    until(lambda: of(scrape(metrics), "penstock_dead_letters"), "dead letters")
    values = scrape(metrics)
    assert len(of(values, "penstock_queue_depth")) == MOST_QUEUES
    until(lambda: len(of(scrape(metrics), "penstock_queue_consumers")) == MOST_QUEUES)
    letters = of(values, "penstock_dead_letters")
    assert len(letters) == MOST_DEAD_LETTERS + 1
    assert letters['penstock_dead_letters{kind="other",queue="other"}'] == 2 * 101
    assert letters['penstock_dead_letters{kind="ledger.note",queue="notes"}'] == 1, "ours are shown first"
    assert "penstock_evil" not in {name.partition("{")[0] for name in values}
    assert sum(letters.values()) == 2 * (MOST_DEAD_LETTERS + 100) + 1


def test_all_processes_report_the_same_numbers(ledger: Database, redis_url: str, prefix: str, start: Start) -> None:
    add_members(ledger)
    settings = settings_for(redis_url, prefix, database_url=ledger.url)
    with_sender(settings, [envelope(str(number), "notes") for number in range(5)])
    both = [start(settings, ledger) for _ in range(2)]

    def stable(metrics: FleetMetrics) -> dict[str, float]:
        return {name: value for name, value in scrape(metrics).items() if "_seconds" not in name}

    depth = 'penstock_queue_depth{queue="notes"}'
    until(lambda: stable(both[0]) == stable(both[1]) and stable(both[0]).get(depth) == 5)
    assert stable(both[0])["penstock_dispatchers"] == 2


def test_what_takes_long_to_read_is_read_seldom_and_holds_up_nothing() -> None:
    slow: list[tuple[float, float]] = []

    def read_slowly() -> list[Any]:
        began = time.monotonic()
        time.sleep(0.05)
        slow.append((began, time.monotonic()))
        return [("slow", (), len(slow))]

    fast = iter(range(1, 10**9))
    readers = {"slow": read_slowly, "fast": lambda: [("fast", (), next(fast))]}
    readings = Readings("readings", {"slow": ("", ()), "fast": ("", ())}, readers, every_seconds=0.05)
    readings.start()
    try:
        until(lambda: scrape(readings).get("slow", 0) >= 3)
        assert scrape(readings)["fast"] > scrape(readings)["slow"]
    finally:
        readings.close()
    for (began, ended), (again, _) in itertools.pairwise(slow):
        assert again - ended >= REST * (ended - began) * 0.99


def test_a_reader_with_an_error_of_ours_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> list[Any]:
        raise KeyError("a slip")

    good = iter(range(1, 10**9))
    readers = {"bad": fail, "good": lambda: [("good", (), next(good))]}
    readings = Readings("readings", {"bad": ("", ()), "good": ("", ())}, readers, every_seconds=0.05)
    readings.start()
    try:
        until(lambda: scrape(readings).get("good", 0) >= 3)
    finally:
        readings.close()
    [line] = [record for record in caplog.records if record.getMessage() == "metrics of bad are left out: 'a slip'"]
    assert line.exc_info is not None, "a traceback"
