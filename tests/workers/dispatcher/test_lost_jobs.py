"""A dispatcher that sends again what its broker lost, in a whole and in part."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import redis
from support.brokers import Arrivals
from support.ledgers import Note, Ring, claimed, message, row_of, set_up, start_worker
from support.polling import until

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.producers.senders.rabbitmq.names import lane_name
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.producers.senders.redis.sender import lane_key
from penstock.schemas import State
from penstock.schemas.wire.codec import encode
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.brokers.loss_detection import Lane
from penstock.workers.dispatcher import lost_jobs
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.dispatcher.lost_jobs import LostJobs, Reaper
from penstock.workers.local.up.redis_server import RedisServer

LEASE = timedelta(seconds=0.5)


@pytest.fixture
def ledger_url(sqlite_url: str) -> str:
    return set_up(sqlite_url)


def dispatchers(broker_url: str, prefix: str, ledger: Database) -> list[Dispatcher]:
    settings = Settings(
        broker_url=broker_url,
        database_url=ledger.url,
        prefix=prefix,
        stock_queues=(),
        lease_seconds=LEASE.total_seconds(),
    )
    return [Dispatcher(settings) for _ in range(2)]


def consumer_of(url: str, prefix: str) -> Consumer:
    return open_consumer(url, ["notes"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)


def fetched(consumer: Consumer, ids: set[str]) -> None:
    """Fetch until all of these have come."""
    arrivals = Arrivals(consumer)
    until(lambda: arrivals.more() and ids <= set(arrivals.ids))


def test_a_wiped_redis_gets_all_of_it_again(own_redis: RedisServer, prefix: str, ledger: Database) -> None:
    envelopes = [encode(Note(text=str(number)), due_at=datetime.now(UTC)) for number in range(1200)]
    running = dispatchers(own_redis.url, prefix, ledger)
    consumer = consumer_of(own_redis.url, prefix)
    try:
        for dispatcher in running:
            dispatcher.start()
        due.schedule(ledger, envelopes)
        until(lambda: {row_of(ledger, envelope.id).state for envelope in envelopes} == {State.QUEUED})
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()
        consumer.open()
        fetched(consumer, {envelope.id for envelope in envelopes})
    finally:
        for dispatcher in running:
            dispatcher.stop()
        consumer.close()


@pytest.mark.parametrize("broker", ["redis", pytest.param("amqp", marks=pytest.mark.rabbitmq)])
def test_a_lane_that_was_deleted_gets_its_jobs_again(
    broker: str, request: pytest.FixtureRequest, prefix: str, ledger: Database
) -> None:
    url = str(request.getfixturevalue(f"{broker}_url"))
    envelopes = [encode(Note(text=str(number)), due_at=datetime.now(UTC)) for number in range(700)]
    running = dispatchers(url, prefix, ledger)
    consumer = consumer_of(url, prefix)
    try:
        for dispatcher in running:
            dispatcher.start()
        due.schedule(ledger, envelopes)
        until(lambda: {row_of(ledger, envelope.id).state for envelope in envelopes} == {State.QUEUED})
        if broker == "redis":
            with redis.Redis.from_url(url) as client:
                client.delete(lane_key(prefix, "notes", "normal"))
        else:
            connection = connect(url, timeout_seconds=10)
            connection.channel().queue_delete(lane_name(prefix, "notes", "normal"))
            connection.close()
        start_worker(ledger, "w1", lease=timedelta(hours=1))  # a worker that waits for them
        consumer.open()
        fetched(consumer, {envelope.id for envelope in envelopes})
    finally:
        for dispatcher in running:
            dispatcher.stop()
        consumer.close()


class Empty:
    """A broker that never has anything."""

    def data_since(self, now: Callable[[], datetime]) -> datetime | None:
        return None

    def oldest(self, lanes: list[Lane]) -> dict[Lane, timedelta | None]:
        return dict.fromkeys(lanes, timedelta())

    def close(self) -> None:
        pass


def test_a_lane_that_is_missed_again_is_given_longer(ledger: Database) -> None:
    from support.ledgers import change

    from penstock.ledger.transitions import lost as resending

    start_worker(ledger, "w1", lease=timedelta(hours=1))
    lost = LostJobs(ledger, Empty(), timedelta(seconds=30))  # type: ignore[arg-type]
    envelope = encode(Note(), due_at=datetime.now(UTC))
    due.schedule(ledger, [envelope])

    def look(age: float) -> str:
        sent_at = resending.clock(ledger) - timedelta(seconds=age)
        change(ledger, envelope.id, state=State.QUEUED, due_at=sent_at)
        lost._check_at = 0.0
        lost.run_once()
        return str(row_of(ledger, envelope.id).state)

    assert [look(50), look(70)] == [State.QUEUED, State.SCHEDULED]
    assert [look(70), look(110), look(130)] == [State.QUEUED, State.QUEUED, State.SCHEDULED]
    assert [look(200), look(250)] == [State.QUEUED, State.SCHEDULED]


def test_an_outage_of_the_ledger_leaves_live_workers_a_lease_to_renew_theirs(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage ended every lease; the worker that died is the one which does not renew its own."""
    for name in ("alive", "dead"):
        start_worker(ledger, name, lease=timedelta(hours=-1))
    kept, left = message(Ring(number="1")), message(Ring(number="2"))
    claimed(ledger, kept, worker="alive")
    claimed(ledger, left, worker="dead")

    def fail(*args: object, **options: object) -> list[str]:
        raise LedgerUnavailable("read-only")

    reaper = Reaper(ledger, LEASE)
    assert not reaper.run_once()
    time.sleep(LEASE.total_seconds())
    with monkeypatch.context() as outage:
        outage.setattr(lost_jobs, "bury_abandoned", fail)
        with pytest.raises(LedgerUnavailable):
            reaper.run_once()
    assert not reaper.run_once()  # as soon as it is back: the first look since the outage
    heartbeats.beat(ledger, "alive", lease=timedelta(hours=1), progress={})
    until(reaper.run_once)
    assert (row_of(ledger, kept.id).state, row_of(ledger, left.id).state) == (State.RUNNING, State.DEAD)
