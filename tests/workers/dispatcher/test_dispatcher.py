"""Whole dispatchers, with real brokers and databases."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.brokers import Arrivals
from support.ledgers import Note, empty, row_of
from support.polling import WAIT_SECONDS, until
from support.servers.databases import MariadbServer, PostgresServer

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.senders import open_sender
from penstock.schemas import State
from penstock.schemas.wire.codec import encode
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.dispatcher.dispatcher import Dispatcher


@pytest.fixture(params=["redis", pytest.param("amqp", marks=pytest.mark.rabbitmq)])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def notes(broker_url: str, prefix: str) -> Iterator[Consumer]:
    consumer = open_consumer(broker_url, ["notes"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)
    consumer.open()
    yield consumer
    consumer.close()


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_delayed_jobs_are_sent_once_by_three_dispatchers(
    broker_url: str, prefix: str, notes: Consumer, database: str, request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue(f"{database}_url"))
    ledger = Database(url)
    upgrade(ledger)
    empty(ledger)
    settings = Settings(broker_url=broker_url, database_url=url, prefix=prefix, stock_queues=())
    due = datetime.now(UTC) + timedelta(seconds=1)
    envelopes = [encode(Note(text=str(number)), due_at=due) for number in range(500)]
    sender = open_sender(broker_url, prefix=prefix)
    dispatchers = [Dispatcher(settings) for _ in range(3)]
    for dispatcher in dispatchers:
        dispatcher.start()
    try:
        sender.send(envelopes)
        ids = Arrivals(notes).wait_for(500)
        for dispatcher in dispatchers:
            dispatcher.stop()
        states = {row_of(ledger, envelope.id).state for envelope in envelopes}
    finally:
        for dispatcher in dispatchers:
            dispatcher.stop()
        sender.close()
        ledger.close()
    assert sorted(ids) == sorted(envelope.id for envelope in envelopes)
    assert states == {State.QUEUED}


def test_the_process_fires_schedules_and_ends_cleanly_on_sigterm(
    redis_url: str, prefix: str, sqlite_url: str, tmp_path: Path
) -> None:
    ledger = Database(sqlite_url)
    upgrade(ledger)
    (tmp_path / "clock_jobs.py").write_text(
        "from penstock.schemas import Job\n\nclass Clock(Job, kind='clock.tick', queue='clocks'):\n    text: str\n"
    )
    (tmp_path / "penstock.toml").write_text(
        "[schedules.second]\nkind = 'clock.tick'\ncron = '* * * * * *'\noverlap = 'allow'\npayload = { text = 'x' }\n"
    )
    environment = {
        **os.environ,
        "PENSTOCK_BROKER_URL": redis_url,
        "PENSTOCK_DATABASE_URL": sqlite_url,
        "PENSTOCK_PREFIX": prefix,
        "PENSTOCK_STOCK_QUEUES": "[]",
    }
    environment.pop("PENSTOCK_CONFIG", None)
    command = [
        sys.executable,
        "-c",
        "from penstock.workers.cli import main; main()",
        "dispatcher",
        "--import",
        "clock_jobs",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    consumer = open_consumer(redis_url, ["clocks"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)
    consumer.open()
    try:
        [first, *_] = until(lambda: consumer.fetch(10, 0.1))
        assert first.envelope.kind == "clock.tick"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        consumer.close()
        ledger.close()
    assert process.returncode == 0, log
    assert "dispatcher stopped" in log
    assert "Traceback" not in log


def test_a_dispatcher_outlives_an_unavailable_broker_and_ledger(
    tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    from penstock.workers.local.up.redis_server import RedisServer

    server = RedisServer(tmp_path / "redis")  # not started yet
    url = f"sqlite:///{tmp_path / 'late.db'}"
    settings = Settings(
        broker_url=server.url, database_url=url, prefix=prefix, stock_queues=(), broker_timeout_seconds=1.0
    )
    dispatcher = Dispatcher(settings)
    dispatcher.start()
    ledger = Database(url)
    try:
        until(lambda: {"inbox", "due jobs", "schedules"} <= {record.message.split(":")[0] for record in caplog.records})
        server.start()
        upgrade(ledger)
        envelope = encode(Note(), due_at=datetime.now(UTC))
        sender = open_sender(server.url, prefix=prefix)
        sender.send([envelope])
        sender.close()
        until(lambda: (row := row_of(ledger, envelope.id)) is not None and row.state == State.QUEUED)
    finally:
        dispatcher.stop()
        ledger.close()
        server.stop()


IMPATIENT = """
import threading
import time
from pathlib import Path
from penstock.workers.cli import main
from penstock.workers.dispatcher import dispatcher
from penstock.workers.dispatcher.poller import Poller

join, start, services = Poller.join, Poller.start, []

def recorded_start(service):
    services.append(service)
    start(service)

def printing_join(service, seconds):
    ended = join(service, seconds)
    if not ended:
        print(seconds)
    return ended

def report_hanging_rounds():
    while not Path("stalled").exists() or sum(service._round_began is not None for service in services) < 4:
        time.sleep(0.1)
    Path("hangs").touch()

dispatcher.STOP_SECONDS, Poller.join, Poller.start = 2.0, printing_join, recorded_start
threading.Thread(target=report_hanging_rounds, daemon=True).start()
main()
"""
"""`penstock` with a dispatcher that prints how long it waited for each service that it left behind."""


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_dispatcher_whose_ledger_answers_nothing_stops_in_time_and_names_what_it_leaves(
    kind: str, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    """Its services wait for the ledger at the same time; when each got the whole time, a stop took a minute."""
    server = PostgresServer() if kind == "postgres" else MariadbServer(tmp_path / "mariadb")
    log = tmp_path / "log"
    try:
        server.start()
        with contextlib.closing(Database(server.url)) as database:
            upgrade(database)
        environment = os.environ | {
            "PENSTOCK_BROKER_URL": redis_url,
            "PENSTOCK_DATABASE_URL": server.url,
            "PENSTOCK_PREFIX": prefix,
        }
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", IMPATIENT, "dispatcher"],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        until(lambda: "dispatcher runs" in log.read_text(), unless=process.poll)
        server.stall()
        (tmp_path / "stalled").touch()
        until((tmp_path / "hangs").exists)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 0, log.read_text()
        waits = [float(line) for line in printed.split()]
        assert len(waits) > 1
        assert sum(waits) <= 2.0
        assert log.read_text().count("still busy, left behind") == len(waits)
    finally:
        server.resume()
        server.close()
