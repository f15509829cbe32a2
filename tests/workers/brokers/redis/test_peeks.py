"""A look at the jobs that wait in a broker and are not on record: what it shows, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from support.brokers import fetch
from support.ledgers import Note, claimed, set_up
from support.polling import until

from penstock.config.settings import Settings
from penstock.ledger.queries.jobs import JobFilter, recorded_ids
from penstock.ledger.queries.scope import Scope
from penstock.ledger.sql.database import Database
from penstock.producers import Producer
from penstock.producers.senders import open_backlogs, open_peeks
from penstock.producers.senders.redis.sender import GROUP, lane_key
from penstock.schemas.wire.codec import decode, encode
from penstock.workers.brokers import Consumer
from penstock.workers.fleet import in_broker
from penstock.workers.fleet.in_broker import InBroker, find_in_broker

MakeConsumer = Callable[..., Consumer]


@pytest.fixture
def lite(sqlite_url: str) -> Iterator[Database]:
    """A ledger on SQLite: the broker is what most of these tests are about."""
    database = Database(set_up(sqlite_url))
    yield database
    database.close()


@pytest.fixture
def on_redis(redis_url: str, prefix: str) -> Iterator[Producer]:
    producer = Producer(redis_url, prefix=prefix)
    yield producer
    producer.close()


def look(url: str, prefix: str, ledger: Database, **options: Any) -> InBroker:
    settings = Settings(broker_url=url, prefix=prefix)
    peeks, backlogs = open_peeks(settings), open_backlogs(settings)
    scope, end, limit = options.pop("scope", Scope()), options.pop("end", "newest"), options.pop("limit", 50)
    try:
        waiting = backlogs.read(["notes", "dispatcher"])
        return find_in_broker(ledger, peeks, waiting, JobFilter(**options, scope=scope), end=end, limit=limit)
    finally:
        backlogs.close()
        if peeks is not None:
            peeks.close()


def test_waiting_jobs_are_seen_with_their_age_until_they_are_fetched(
    on_redis: Producer, redis_url: str, prefix: str, lite: Database, make_consumer: MakeConsumer
) -> None:
    first = on_redis.enqueue(Note(), tenant="acme", key="k1", tags=["import"])
    second = on_redis.enqueue(Note(), priority="high")
    seen = look(redis_url, prefix, lite)
    assert [job.id for job in seen.jobs] == [second.id, first.id]
    assert [job.id for job in look(redis_url, prefix, lite, end="oldest").jobs] == [first.id, second.id]
    newest, oldest = seen.jobs
    assert (oldest.kind, oldest.queue, oldest.priority, oldest.tenant, oldest.key, oldest.tags) == (
        "ledger.note",
        "notes",
        "normal",
        "acme",
        "k1",
        ("import",),
    )
    assert (newest.priority, newest.tenant, seen.waiting, seen.note) == ("high", None, 2, None)
    until(lambda: look(redis_url, prefix, lite).jobs[1].age_seconds > 0.2, "an age")
    consumer = make_consumer(redis_url, "notes")
    [fetched] = [delivery.envelope.id for delivery in fetch(consumer, 1)]
    assert {fetched, *(job.id for job in look(redis_url, prefix, lite).jobs)} == {first.id, second.id}
    assert len(look(redis_url, prefix, lite).jobs) == 1


def test_filters_and_bounds_choose_among_them(on_redis: Producer, redis_url: str, prefix: str, lite: Database) -> None:
    ours = on_redis.enqueue(Note(), tenant="acme", key="k1", tags=["import"]).id
    other = on_redis.enqueue(Note(), tenant="other").id
    delayed = on_redis.enqueue(Note(), delay=timedelta(hours=1), tenant="late").id

    def ids(**options: Any) -> list[str]:
        return [job.id for job in look(redis_url, prefix, lite, **options).jobs]

    assert set(ids()) == {ours, other, delayed}
    for chosen in ({"tenant": "acme"}, {"key": "k1"}, {"tags": ("import",)}, {"id_prefix": ours[:35]}):
        assert ours in ids(**chosen), chosen
        assert other not in ids(**chosen) or "id_prefix" in chosen, chosen
    assert ids(kind="none") == ids(queue="none") == ids(tenant="ACME") == []
    assert set(ids(kind="ledger.note", queue="notes")) == {ours, other, delayed}
    [late] = look(redis_url, prefix, lite, tenant="late").jobs
    assert (late.queue, late.waits_in) == ("notes", "dispatcher")
    assert ids(enqueued_until=datetime.now(UTC) - timedelta(hours=1)) == []
    assert ids(scope=Scope(tenants=("other",))) == [other]
    assert ids(scope=Scope(queues=("mails",))) == []
    seen = look(redis_url, prefix, lite, error="broken")
    assert seen.jobs == []
    assert "only what is on record" in str(seen.note)


def test_a_look_is_bounded_and_says_so(
    on_redis: Producer, redis_url: str, prefix: str, lite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [handle.id for handle in on_redis.enqueue_many([Note() for _ in range(12)])]
    monkeypatch.setattr(in_broker, "MOST", 5)
    newest, oldest = look(redis_url, prefix, lite), look(redis_url, prefix, lite, end="oldest")
    assert {job.id for job in newest.jobs} == set(sent[-5:])
    assert {job.id for job in oldest.jobs} == set(sent[:5])
    assert newest.waiting == 12
    assert "the newest 5 of each lane" in str(newest.note)
    monkeypatch.setattr(in_broker, "MOST", 12)
    assert look(redis_url, prefix, lite, limit=12).note is None
    few = look(redis_url, prefix, lite, limit=3)
    assert (len(few.jobs), few.note is None) == (3, False)


def test_what_strangers_put_there_is_shown_and_not_a_job(redis_url: str, prefix: str, lite: Database) -> None:
    client = redis.Redis.from_url(redis_url)
    lane = lane_key(prefix, "notes", "normal")
    for fields in ({"x": "y"}, {"h": "{", "b": ""}, {"h": "[1]", "b": ""}, {"h": '{"id": 7, "penstock": {"key": 8}}'}):
        client.xadd(lane, fields)
    client.set(lane_key(prefix, "notes", "high"), "a text")
    seen = look(redis_url, prefix, lite)
    assert sorted(job.id for job in seen.jobs) == ["", "", "", "7"]
    assert {job.key for job in seen.jobs} == {None}
    client.close()


def test_jobs_on_record_are_left_out_on_every_database(
    on_redis: Producer, redis_url: str, prefix: str, ledger: Database
) -> None:
    sent = [handle.id for handle in on_redis.enqueue_many([Note() for _ in range(3)])]
    claimed(ledger, decode(encode(Note(), id=sent[0])))
    assert recorded_ids(ledger, sent) == {sent[0]}
    assert recorded_ids(ledger, []) == set()
    seen = look(redis_url, prefix, ledger)
    assert ({job.id for job in seen.jobs}, seen.waiting) == (set(sent[1:]), 3)


@pytest.mark.rabbitmq
def test_rabbitmq_is_not_looked_into_and_that_is_said(amqp_url: str, prefix: str, lite: Database) -> None:
    producer = Producer(amqp_url, prefix=prefix)
    producer.enqueue(Note())
    producer.close()
    until(lambda: look(amqp_url, prefix, lite).waiting == 1, "the job that waits")
    seen = look(amqp_url, prefix, lite)
    assert seen.jobs == []
    assert "only by delivering it" in str(seen.note)


def test_a_look_takes_nothing_and_counts_no_delivery(
    on_redis: Producer, redis_url: str, prefix: str, lite: Database, make_consumer: MakeConsumer
) -> None:
    consumer = make_consumer(redis_url, "notes")
    sent = [handle.id for handle in on_redis.enqueue_many([Note() for _ in range(3)])]
    client = redis.Redis.from_url(redis_url)
    before = client.xinfo_groups(lane_key(prefix, "notes", "normal"))
    for end in ("newest", "oldest"):
        look(redis_url, prefix, lite, end=end)
    assert client.xinfo_groups(lane_key(prefix, "notes", "normal")) == before
    assert [group["name"] for group in before] == [GROUP.encode()]
    client.close()
    deliveries = fetch(consumer, 3)
    assert [(delivery.envelope.id, delivery.deliveries) for delivery in deliveries] == [(id, 1) for id in sent]
