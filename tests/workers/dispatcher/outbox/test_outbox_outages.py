"""An outbox while brokers are down and dispatchers are killed, and the notifications that wake it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support.brokers import Arrivals
from support.ledgers import Note, Tick, empty, row_of
from support.polling import until
from workers.dispatcher.outbox.outbox_relays import OUT, Export, enqueue, left, relays, settings_for

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.outbox import create_outbox
from penstock.schemas import State
from penstock.workers.brokers import open_consumer
from penstock.workers.dispatcher.outbox import relay as relaying
from penstock.workers.local.up.redis_server import RedisServer


def test_the_outbox_grows_and_keeps_its_order_while_the_broker_is_down(
    prefix: str, ledger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "BATCH", 5)
    server = RedisServer(tmp_path / "redis")  # not started yet
    settings = settings_for(server.url, ledger.url, prefix, broker_timeout_seconds=0.5)
    with relays(settings, 2) as [first, other]:
        ids = enqueue(ledger, *(Note(text=str(number)) for number in range(20)), key="k")
        granted = enqueue(ledger, Export(), key="k", unique="reject")
        ticks = enqueue(ledger, Tick(number=1))
        until(lambda: first._failing is not None or other._failing is not None)
        assert left(ledger) >= 21  # the unique one may be the ledger's already
        server.start()
        try:
            consumer = open_consumer(server.url, ["notes", "ticks"], name="c", prefix=prefix)
            consumer.open()
            arrived = Arrivals(consumer)
            got_ids = arrived.wait_for(21)
            until(lambda: left(ledger) == 0)
            consumer.close()
        finally:
            server.stop()
    assert [job_id for job_id in got_ids if job_id in ids] == ids
    assert set(got_ids) - {granted[0]} == {*ids, *ticks}
    assert {row_of(ledger, job_id).state for job_id in ids} == {State.QUEUED}
    assert row_of(ledger, granted[0]).state in (State.QUEUED, State.SCHEDULED)  # there, the due jobs would send it


@pytest.mark.postgres
def test_a_commit_on_postgresql_wakes_the_dispatcher(
    redis_url: str, prefix: str, postgres_url: str, arrived: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "_POLL_SECONDS_WHEN_NOTIFIED", 3600.0)
    ledger = Database(postgres_url)
    upgrade(ledger)
    empty(ledger)
    listeners = sa.text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = :name")
    name = sa.make_url(postgres_url).database

    def listens() -> bool:
        return bool(ledger.read(lambda connection: connection.execute(listeners, {"name": name}).scalar_one()))

    with relays(settings_for(redis_url, postgres_url, prefix)):
        until(listens)
        ids = []
        for number in range(3):
            [job_id] = enqueue(ledger, Note(text=str(number)))
            ids.append(job_id)
            assert arrived.wait_for(number + 1) == ids
    ledger.close()


DIES = """
import os, signal, sys
from datetime import timedelta
from support import ledgers
from penstock.config.settings import Settings
from penstock.ledger.outbox import batch, rows
from penstock.ledger.sql.database import Database
from penstock.workers.dispatcher.outbox import relay as outbox

broker_url, database_url, prefix, point, shop_url = sys.argv[1:]
batch.RESERVED = rows.RESERVED = timedelta(seconds=2)
outbox.BATCH = 100
shops = (shop_url,) if shop_url else ()
settings = Settings(broker_url=broker_url, database_url=database_url, prefix=prefix, outbox_urls=shops)
services = outbox.open_outboxes(settings, Database(database_url))
relay = [one for one in services if isinstance(one, outbox.OutboxRelay)][-1]
relay.run_once()
send = relay._sender.send

def die(envelopes):
    if point == "sent":
        send(envelopes)
    os.kill(os.getpid(), signal.SIGKILL)

relay._sender.send = die
relay.run_once()
"""


@pytest.mark.parametrize(("point", "shop"), [("recorded", "the ledger's"), ("sent", "its own")])
def test_a_dispatcher_killed_in_the_middle_of_a_batch_loses_nothing(
    point: str, shop: str, redis_url: str, prefix: str, ledger: Database, arrived: Arrivals, tmp_path: Path
) -> None:
    backend = ledger if shop == "the ledger's" else Database(f"sqlite:///{tmp_path / 'shop.db'}")
    create_outbox(backend.engine)
    committed = []
    for number in range(100):
        with Session(backend.engine) as session:
            handles = OUT.enqueue_many(session, [Note(text=f"{number}-{part}") for part in range(5)])
            OUT.enqueue(session, Note(text="more of a key"), key=f"key-{number % 7}", id=f"keyed-{number:03}")
            session.commit()
            committed += [handle.id for handle in handles] + [f"keyed-{number:03}"]
            OUT.enqueue(session, Note(text="rolled back"))
            session.flush()
            session.rollback()
    urls = () if backend is ledger else (backend.url,)
    arguments = [redis_url, ledger.url, prefix, point, *(urls or ("",))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    died = subprocess.run([sys.executable, "-c", DIES, *arguments], env=environment, check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert left(backend) == 500  # its first batch of a hundred is done with
    with relays(settings_for(redis_url, ledger.url, prefix, outbox_urls=urls), 2):
        until(lambda: arrived.more() and left(backend) == 0)
        until(lambda: arrived.more() and set(arrived.ids) == set(committed))
    again = len(arrived.ids) - len(committed)
    assert again == (100 if point == "sent" else 0)  # each under its id, so the claim refuses it
    everything = sa.select(jobs.c.id).where(jobs.c.state == State.QUEUED)
    on_record = ledger.read(lambda connection: list(connection.execute(everything).scalars()))
    assert sorted(on_record) == sorted(committed)
    firsts = list(dict.fromkeys(arrived.ids))
    for key in range(7):
        keyed = [f"keyed-{number:03}" for number in range(key, 100, 7)]
        assert [job_id for job_id in firsts if job_id in keyed] == keyed
    if backend is not ledger:
        backend.close()


@pytest.mark.slow
@pytest.mark.postgres
def test_committed_jobs_are_sent_although_a_dispatcher_is_killed(
    redis_url: str, prefix: str, postgres_url: str, arrived: Arrivals, tmp_path: Path
) -> None:
    ledger = Database(postgres_url)
    upgrade(ledger)
    empty(ledger)
    environment = {
        **os.environ,
        "PENSTOCK_BROKER_URL": redis_url,
        "PENSTOCK_DATABASE_URL": postgres_url,
        "PENSTOCK_PREFIX": prefix,
        "PENSTOCK_STOCK_QUEUES": "[]",
    }
    command = [sys.executable, "-c", "from penstock.workers.cli import main; main()", "dispatcher"]
    first, second = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    committed: list[str] = []
    try:
        up = enqueue(ledger, Note(text="up"))
        until(arrived.more)
        for number in range(250):
            committed += enqueue(ledger, Note(text="a"), Note(text="b"))
            if number == 125:
                first.kill()
        until(lambda: arrived.more() and set(arrived.ids) >= set(committed))
        until(lambda: left(ledger) == 0)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    everything = ledger.read(lambda connection: list(connection.execute(sa.select(jobs.c.id)).scalars()))
    ledger.close()
    assert set(arrived.ids) == {*committed, *up}
    assert sorted(everything) == sorted([*committed, *up])
