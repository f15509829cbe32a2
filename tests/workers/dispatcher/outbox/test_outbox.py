"""Jobs committed to an outbox are sent, on record before they leave; with real brokers and databases."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support.brokers import Arrivals
from support.ledgers import Note, Tick, empty, letters, row_of
from support.polling import until
from workers.dispatcher.outbox.outbox_relays import OUT, Export, enqueue, left, relays, settings_for

from penstock.config.settings import Settings
from penstock.ledger.rows.jobs import RESERVED
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox
from penstock.ledger.sql.upgrade import upgrade
from penstock.ledger.transitions.cancel import cancel_key, request_cancel
from penstock.producers.outbox import create_outbox
from penstock.schemas import State
from penstock.workers.brokers import open_consumer
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.dispatcher.outbox import relay as relaying
from penstock.workers.dispatcher.outbox.relay import open_outboxes


def test_a_dispatcher_sends_what_is_committed_and_nothing_else(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals
) -> None:
    with Session(ledger.engine) as session:
        OUT.enqueue(session, Note(text="no"))
        session.flush()
        session.rollback()
    tracked = enqueue(ledger, Note(text="a"), Note(text="b"), key="k", tenant="t", priority="high")
    untracked = enqueue(ledger, Tick(number=7))
    later = enqueue(ledger, Note(text="later"), delay=3600)
    dispatcher = Dispatcher(settings_for(redis_url, ledger.url, prefix))
    dispatcher.start()
    try:
        ids = arrived.wait_for(3)
        until(lambda: left(ledger) == 0)
    finally:
        dispatcher.stop()
    assert sorted(ids) == sorted(tracked + untracked)
    assert [job_id for job_id in ids if job_id in tracked] == tracked
    assert [row_of(ledger, job_id).state for job_id in tracked] == [State.QUEUED] * 2
    row = row_of(ledger, tracked[0])
    assert (row.key, row.tenant, row.priority, row.fence, row.due_at is None) == ("k", "t", "high", 0, False)
    assert row_of(ledger, untracked[0]) is None
    assert row_of(ledger, later[0]).state == State.SCHEDULED


@pytest.mark.rabbitmq
def test_jobs_go_to_rabbitmq_likewise(amqp_url: str, prefix: str, ledger: Database) -> None:
    consumer = open_consumer(amqp_url, ["notes", "ticks"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)
    consumer.open()
    try:
        ids = enqueue(ledger, *(Note(text=str(number)) for number in range(20)), key="k")
        ticks = enqueue(ledger, Tick())
        with relays(settings_for(amqp_url, ledger.url, prefix), 2):
            arrived = Arrivals(consumer)
            got_ids = arrived.wait_for(21)
            until(lambda: left(ledger) == 0)
    finally:
        consumer.close()
    assert [job_id for job_id in got_ids if job_id in ids] == ids
    assert sorted(got_ids) == sorted([*ids, *ticks])


def test_a_job_is_on_record_before_the_broker_has_it(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    with relays(settings_for(redis_url, ledger.url, prefix)) as [relay]:
        send = relay._sender.send

        def look_and_send(envelopes: Any) -> None:
            seen.extend((row_of(ledger, envelope.id).state, left(ledger)) for envelope in envelopes)
            send(envelopes)

        monkeypatch.setattr(relay._sender, "send", look_and_send)
        enqueue(ledger, Note())
        arrived.wait_for(1)
    assert seen == [(State.SCHEDULED, 1)]


def test_the_outbox_of_another_database_is_emptied_into_the_ledger(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals, tmp_path: Path
) -> None:
    shop = Database(f"sqlite:///{tmp_path / 'shop.db'}")
    create_outbox(shop.engine)
    ids = [*enqueue(shop, Note(text="a"), key="k"), *enqueue(shop, Note(text="b"), key="k")]
    unique = enqueue(shop, Export(), key="x", unique="reject")
    refused = enqueue(shop, Export(), key="x", unique="reject")
    untracked, own = enqueue(shop, Tick()), enqueue(ledger, Note(text="the ledger's own"))
    with relays(settings_for(redis_url, ledger.url, prefix, outbox_urls=(shop.url,)), 2):
        got_ids = arrived.wait_for(5)
        until(lambda: left(shop) + left(ledger) == 0)
        until(lambda: {row_of(ledger, job_id).state for job_id in ids + own} == {State.QUEUED})
    shop.close()
    assert sorted(got_ids) == sorted([*ids, *untracked, *own, *unique])
    assert row_of(ledger, refused[0]) is None
    assert [job_id for job_id in got_ids if job_id in ids] == ids
    assert row_of(ledger, untracked[0]) is None


def test_a_kind_that_the_dispatcher_does_not_know_is_sent_whole(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals
) -> None:
    [job_id] = enqueue(ledger, Note(text="ä"), key="k")
    with ledger.engine.begin() as connection:
        headers = json.loads(connection.execute(sa.select(outbox.c.headers)).scalar_one())
        headers["task"] = "shop.unknown"
        headers["more"] = {"kept": True}
        connection.execute(sa.update(outbox).values(kind="shop.unknown", headers=json.dumps(headers)))
    with relays(settings_for(redis_url, ledger.url, prefix)):
        arrived.wait_for(1)
    [delivery] = arrived.deliveries
    assert delivery.envelope.headers["more"] == {"kept": True}
    assert delivery.envelope.kind == "shop.unknown"
    assert json.loads(delivery.envelope.body)[1] == {"text": "ä"}
    row = row_of(ledger, job_id)
    assert (row.kind, row.state, json.loads(row.payload)) == ("shop.unknown", State.QUEUED, {"text": "ä"})


def test_unique_jobs_are_decided_about_in_the_order_of_their_commits(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock")
    first = enqueue(ledger, Export(text="1"), key="k", unique="reject")
    refused = enqueue(ledger, Export(text="2"), key="k", unique="reject")
    replaced = enqueue(ledger, Export(text="3"), key="r", unique="replace", delay=3600)
    by = enqueue(ledger, Export(text="4"), key="r", unique="replace")
    put_off = enqueue(ledger, Export(text="5"), key="d", unique="debounce", debounce=3600)
    with relays(settings_for(redis_url, ledger.url, prefix)):
        ids = arrived.wait_for(2)
        until(lambda: left(ledger) == 0)
    assert sorted(ids) == sorted(first + by)
    assert row_of(ledger, refused[0]) is None
    assert f"job {refused[0]} is not sent: job {first[0]} stands for its key" in caplog.text
    assert row_of(ledger, replaced[0]).state == State.CANCELLED
    assert row_of(ledger, put_off[0]).state == State.SCHEDULED
    assert {row_of(ledger, job_id).state for job_id in first + by} == {State.QUEUED}


def test_a_job_cancelled_in_the_outbox_is_not_sent(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals
) -> None:
    [by_id] = enqueue(ledger, Note(text="by id"))
    [by_key] = enqueue(ledger, Note(text="by key"), key="customer-7")
    [unique] = enqueue(ledger, Export(), key="customer-7", unique="existing")
    request_cancel(ledger, by_id, kind="ledger.note")
    cancel_key(ledger, "customer-7")
    last = enqueue(ledger, Note(text="sent"))
    with relays(settings_for(redis_url, ledger.url, prefix)):
        ids = arrived.wait_for(1)
        until(lambda: left(ledger) == 0)
    assert ids == last
    assert {row_of(ledger, job_id).state for job_id in (by_id, by_key, unique)} == {State.CANCELLED}


def test_an_id_given_twice_is_one_job(redis_url: str, prefix: str, ledger: Database, arrived: Arrivals) -> None:
    enqueue(ledger, Note(text="1"), Note(text="2"), id="twice")
    with relays(settings_for(redis_url, ledger.url, prefix)):
        arrived.wait_for(1)
        enqueue(ledger, Note(text="3"), id="twice")
        [marker] = enqueue(ledger, Note(text="marker"))
        ids = arrived.wait_for(2)
    assert ids == ["twice", marker]


def test_an_unreadable_row_is_a_dead_letter_and_blocks_nothing(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals
) -> None:
    bad = enqueue(ledger, Note(text="headers"), Note(text="body"), Note(text="policy"), Note(text="id"), key="k")
    good = enqueue(ledger, Note(text="good"), key="k")
    changes: list[dict[str, Any]] = [
        {"headers": "{no JSON"},
        {"body": b"\xff no JSON"},
        {"policy": '{"policy": 7}'},
        {"headers": json.dumps({"task": "ledger.note", "id": "x" * 500})},
    ]
    with ledger.engine.begin() as connection:
        for job_id, change in zip(bad, changes, strict=True):
            connection.execute(sa.update(outbox).where(outbox.c.id == job_id).values(**change))
    with relays(settings_for(redis_url, ledger.url, prefix)):
        ids = arrived.wait_for(1)
        until(lambda: left(ledger) == 0)
    assert ids == good
    assert sorted(letter.id for letter in letters(ledger)) == sorted(bad)
    assert {letter.reason for letter in letters(ledger)} == {"undecodable"}


@pytest.mark.postgres
def test_a_job_that_the_database_does_not_take_is_buried_alone(
    redis_url: str, prefix: str, postgres_url: str, arrived: Arrivals
) -> None:
    ledger = Database(postgres_url)
    upgrade(ledger)
    empty(ledger)
    refuse = (
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.key = 'poison' AND NEW.state = 'scheduled' THEN "
        "RAISE EXCEPTION 'not this one' USING ERRCODE = '22000'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON penstock_jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    with ledger.engine.begin() as connection:
        for statement in refuse:
            connection.exec_driver_sql(statement)
    try:
        good = enqueue(ledger, *(Note(text=str(number)) for number in range(40)))
        [poison] = enqueue(ledger, Note(text="poison"), key="poison")
        good += enqueue(ledger, *(Note(text=str(number)) for number in range(40)))
        with relays(settings_for(redis_url, ledger.url, prefix)):
            ids = arrived.wait_for(80)
            until(lambda: left(ledger) == 0)
        assert ids == good
        assert [letter.id for letter in letters(ledger)] == [poison]
    finally:
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER refuse ON penstock_jobs")
        ledger.close()


def test_the_jobs_of_a_key_leave_in_their_order_whoever_sends_them(
    redis_url: str, prefix: str, ledger: Database, arrived: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "BATCH", 7)  # so that the jobs of one key are in many batches
    count = 240

    def commit() -> None:
        for number in range(0, count, 6):
            with Session(ledger.engine) as session:
                for turn in range(number, number + 6):
                    OUT.enqueue(session, Note(text=str(turn)), key=f"key-{turn % 4}")
                session.commit()

    committing = threading.Thread(target=commit)
    with relays(settings_for(redis_url, ledger.url, prefix), 3):
        committing.start()
        ids = arrived.wait_for(count)
        committing.join()
    assert len(set(ids)) == count
    order: dict[str, list[int]] = defaultdict(list)
    for delivery in arrived.deliveries:
        text = json.loads(delivery.envelope.body)[1]["text"]
        order[delivery.envelope.headers["penstock"]["key"]].append(int(text))
    assert order == {f"key-{key}": list(range(key, count, 4)) for key in range(4)}


def test_a_reservation_outlasts_a_slow_broker() -> None:
    """Otherwise a second dispatcher would send the batch of the first."""
    slowest = timedelta(seconds=Settings().broker_timeout_seconds)
    assert slowest < RESERVED


def test_relays_open_a_sender_for_each_database_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Database(url)
    settings = settings_for("redis://127.0.0.1:1/0", url, "p", outbox_urls=(url, f"sqlite:///{tmp_path / 'shop.db'}"))
    names = [service.name for service in open_outboxes(settings, ledger)]
    ledger.close()
    assert names == ["outbox", f"outbox of sqlite:///{tmp_path / 'shop.db'}"]
