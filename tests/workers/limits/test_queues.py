"""Queues that are emptied: jobs are cancelled or moved, none is lost, whatever the broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from limit_site import Free
from support.ledgers import set_up
from support.polling import until
from support.servers.shared import broker_url, delete_queues
from typer.testing import CliRunner

from penstock.config.settings import Settings
from penstock.ledger.members import controls, heartbeats
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions import due
from penstock.ledger.transitions.claim import ClaimRequest, Refusal, claim
from penstock.producers import Producer
from penstock.producers.senders import open_sender_from
from penstock.producers.testing.rows import record_as_sent
from penstock.schemas import State
from penstock.schemas.wire.codec import decode
from penstock.workers.brokers import open_consumer
from penstock.workers.cli import app
from penstock.workers.fleet.waiting import move_queue, purge_queue
from penstock.workers.local.up.redis_server import RedisServer

COUNT = 450


@pytest.fixture(params=["redis", "rabbitmq"])
def settings(request: pytest.FixtureRequest, redis_server: RedisServer, prefix: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    url = broker_url(request.param, redis_server)
    yield Settings(broker_url=url, database_url=set_up(f"sqlite:///{tmp_path}/ledger.db"), prefix=prefix)
    delete_queues(request.param, prefix)


@pytest.fixture
def ledger(settings: Settings):  # type: ignore[no-untyped-def]
    database = Database(settings.database_url)
    yield database
    database.close()


def fill(settings: Settings, ledger: Database, recorded: int = 0) -> list[str]:
    """Send jobs, the first of them on record. Returns the ids of these."""
    producer = Producer.from_settings(settings)
    handles = producer.enqueue_many([Free(n=n) for n in range(COUNT)])
    producer.close()
    until(lambda: depth(settings, "calls") == COUNT, "all jobs")
    consumer = open_consumer(settings.broker_url, ["calls"], name="peek", prefix=settings.prefix)
    consumer.open()
    fetched = until(lambda: consumer.fetch(COUNT, 1.0))
    ids = {handle.id for handle in handles[:recorded]}
    record_as_sent(ledger, [delivery.envelope for delivery in fetched if delivery.envelope.id in ids])
    consumer.release(fetched)
    consumer.close()
    until(lambda: depth(settings, "calls") == COUNT, "all jobs again")
    return sorted(ids)


def depth(settings: Settings, queue: str) -> int:
    sender = open_sender_from(settings)
    try:
        return sender.depths([queue])[queue]
    finally:
        sender.close()


def states(ledger: Database) -> dict[tuple[str, str], int]:
    select = sa.select(jobs.c.queue, jobs.c.state, sa.func.count()).group_by(jobs.c.queue, jobs.c.state)
    return {(row[0], row[1]): row[2] for row in ledger.read(lambda connection: connection.execute(select).all())}


def test_a_purge_cancels_those_on_record_and_counts_the_others(settings: Settings, ledger: Database) -> None:
    ids = fill(settings, ledger, recorded=50)
    done = purge_queue(settings, ledger, "calls", actor="ada", reason="a wrong import")
    assert (done.recorded + done.unknown, done.recorded, done.kept) == (COUNT, len(ids), 0)
    assert depth(settings, "calls") == 0
    assert states(ledger) == {("calls", State.CANCELLED): len(ids)}
    [act] = audit.find(ledger, subject=ids[0])
    assert (act.actor, act.act, act.subject, act.count) == ("ada", "purge", "calls", COUNT)
    assert act.detail == {"reason": "a wrong import"}


def test_a_move_loses_nothing_and_a_message_that_comes_again_is_refused(settings: Settings, ledger: Database) -> None:
    fill(settings, ledger, recorded=50)
    consumer = open_consumer(settings.broker_url, ["calls"], name="slow", prefix=settings.prefix)
    consumer.open()
    [late] = until(lambda: consumer.fetch(1, 1.0))
    done = move_queue(settings, ledger, "calls", "others", actor="ada")
    moved = done.recorded + done.unknown
    assert COUNT - 2 <= moved < COUNT  # RabbitMQ has pushed one more to the worker that has one in hand
    assert (done.kept, states(ledger)["others", State.SCHEDULED]) == (0, moved)
    consumer.release([late])
    envelope = until(lambda: consumer.fetch(1, 1.0))[0].envelope
    record_as_sent(ledger, [envelope])
    # The ledger has moved it, and the broker was not told, as if the command was killed in between.
    ledger.write(lambda connection: due.move(connection, ledger, [(due.waiting(envelope), 0)], "others"))
    [answer] = claim(ledger, [ClaimRequest(decode(envelope), True, 3)], worker="w1")
    assert isinstance(answer, Refusal)
    assert answer.reason == "duplicate"
    consumer.close()


def test_the_list_says_who_really_consumes_and_what_is_paused(
    settings: Settings, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = settings.lease
    for name, engine in (("a", "celery"), ("b", "dramatiq")):
        heartbeats.register(ledger, name, engine=engine, queues=["calls"], kinds={}, lease=lease * 100)
    consumed = heartbeats.Consumed(frozenset({"more"}), frozenset({"calls"}))
    heartbeats.beat(ledger, "b", lease=lease * 100, consumed=consumed)
    controls.pause(ledger, "queue", "calls", actor="ada", reason="wait")
    for name, value in (
        ("BROKER_URL", settings.broker_url),
        ("DATABASE_URL", settings.database_url),
        ("PREFIX", settings.prefix),
    ):
        monkeypatch.setenv(f"PENSTOCK_{name}", value)
    rows = json.loads(CliRunner().invoke(app, ["queues", "list", "--json"]).stdout)
    [calls] = [row for row in rows if row["queue"] == "calls"]
    assert (calls["engine"], calls["names"], calls["left"]) == ("celery", ["a"], ["b"])
    assert calls["consumers"] == "1 celery (1 told to stop)"
    assert (calls["pause"]["by"], calls["pause"]["reason"]) == ("ada", "wait")
    assert [row["names"] for row in rows if row["queue"] == "more"] in ([], [["b"]])
    run = CliRunner().invoke(app, ["queues", "resume", "calls", "--actor", "bob"])
    assert run.exit_code == 0
    assert controls.in_force(ledger).pauses == ()
    assert CliRunner().invoke(app, ["queues", "resume", "calls"]).exit_code == 1
