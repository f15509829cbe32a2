"""A dispatcher that sends again what its broker lost, in a whole and in part."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import redis
from support.brokers import Arrivals
from support.ledgers import Note, Ring, claimed, let_leases_run, message, row_of, set_up, start_worker
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
LONG = timedelta(hours=1)
"""So that no real time counts: a test lets it pass."""
WRITE = Database.write


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


class Clock:
    """The lease of the reaper, and of all others."""

    def __init__(self, ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger, self.seconds = ledger, 0.0
        monkeypatch.setattr(lost_jobs, "time", SimpleNamespace(monotonic=lambda: self.seconds))

    def pass_by(self, seconds: float) -> None:
        let_leases_run(self.ledger, seconds)
        self.seconds += seconds


def refuse(*args: object, **options: object) -> None:
    raise LedgerUnavailable("read-only")


def beat(ledger: Database, *names: str) -> None:
    for name in names:
        heartbeats.beat(ledger, name, lease=LONG)


@pytest.mark.parametrize("outage", ["writes", "newcomers", "the judge is frozen", "the judge starts in it"])
def test_an_outage_of_the_ledger_leaves_live_workers_time_to_renew_their_leases(
    ledger: Database, monkeypatch: pytest.MonkeyPatch, outage: str
) -> None:
    """Whatever the judge sees of it. The worker that died is the one which does not renew its lease afterwards."""
    clock, second = Clock(ledger, monkeypatch), LONG.total_seconds() / 4
    for name in ("alive", "dead", "d1"):
        start_worker(ledger, name, lease=LONG)
    kept, left = message(Ring(number="1")), message(Ring(number="2"))
    claimed(ledger, kept, worker="alive")
    claimed(ledger, left, worker="dead")
    reaper = Reaper(ledger, LONG, "d1")

    def look(renewing: tuple[str, ...]) -> bool:
        clock.pass_by(second)
        beat(ledger, *renewing)
        return reaper.run_once()

    for _ in range(40):
        assert not look(("alive", "dead"))
    with monkeypatch.context() as broken:
        if outage == "newcomers":  # one session is left, and it is the judge's
            broken.setattr(reaper, "_renew_as_newcomer", refuse)
        else:
            broken.setattr(Database, "write", refuse)
        for _ in range(40):
            if outage == "newcomers":
                clock.pass_by(second)
                beat(ledger, "d1")
            else:
                with monkeypatch.context() as mended:
                    mended.setattr(Database, "write", WRITE)
                    clock.pass_by(second)
            if outage in ("writes", "newcomers"):
                with pytest.raises(LedgerUnavailable):
                    reaper.run_once()
    if outage == "the judge starts in it":
        reaper = Reaper(ledger, LONG, "d2")
    assert not look(())  # before any other has noticed that the ledger is back
    for _ in range(3):
        assert not look(())
    rounds = 0
    while not look(("alive",)):
        rounds += 1
        assert rounds < 40
    assert (row_of(ledger, kept.id).state, row_of(ledger, left.id).state) == (State.RUNNING, State.DEAD)


def test_a_worker_that_dies_is_found_five_leases_later(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, second = Clock(ledger, monkeypatch), LONG.total_seconds() / 4
    for name in ("w1", "d1"):
        start_worker(ledger, name, lease=LONG)
    left = message(Ring(number="1"))
    claimed(ledger, left, worker="w1")
    reaper = Reaper(ledger, LONG, "d1")
    for _ in range(20):
        clock.pass_by(second)
        beat(ledger, "w1")
        assert not reaper.run_once()
    rounds = 1
    clock.pass_by(second)
    while not reaper.run_once():
        rounds += 1
        clock.pass_by(second)
    assert rounds == 20
    assert row_of(ledger, left.id).state == State.DEAD
