"""The position of a job in its queue, seen from outside, and in an explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis
from support.brokers import envelope, fetch
from support.ledgers import Note, claimed, message, upgraded
from support.polling import until

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.producers.explain import explain, queue_position
from penstock.producers.explain.queue_position import MemoryPositions, QueuePosition, QueuePositions, open_positions
from penstock.producers.senders import Sender
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.senders.redis.sender import GROUP, lane_key
from penstock.schemas.wire.codec import decode, encode
from penstock.workers.brokers import Consumer
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.dispatcher import due_jobs
from penstock.workers.local.up.redis_server import free_port

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]


@pytest.fixture
def positions(broker_url: str, prefix: str) -> Iterator[QueuePositions]:
    opened = open_positions(broker_url, prefix=prefix)
    yield opened
    opened.close()


@pytest.fixture
def in_redis(redis_url: str, prefix: str) -> Iterator[QueuePositions]:
    opened = open_positions(redis_url, prefix=prefix)
    yield opened
    opened.close()


def test_a_lane_that_was_never_declared_does_not_have_it(positions: QueuePositions) -> None:
    assert positions.find("1", "never-declared", "normal") == QueuePosition(False, 0)


def test_redis_counts_what_waits_before_it_and_in_higher_lanes(
    redis_url: str, in_redis: QueuePositions, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    sender = make_sender(redis_url)
    sender.send([envelope(str(number)) for number in range(5)])
    assert in_redis.find("3", "emails", "normal") == QueuePosition(True, 5, 3), "before any worker has come"
    consumer = make_consumer(redis_url)
    sender.send([envelope("h", priority="high"), envelope("l", priority="low")])
    assert in_redis.find("3", "emails", "normal") == QueuePosition(True, 7, 4)
    assert in_redis.find("h", "emails", "high") == QueuePosition(True, 7, 0)
    assert in_redis.find("l", "emails", "low") == QueuePosition(True, 7, 6)
    high, first = fetch(consumer, 2)
    assert in_redis.find("3", "emails", "normal") == QueuePosition(True, 5, 2)
    held = in_redis.find("0", "emails", "normal")
    assert (held.there, held.ahead, held.held_by) == (True, None, "worker@test-1")
    assert held.silent is not None
    consumer.release([first])
    assert in_redis.find("0", "emails", "normal") == QueuePosition(True, 6, 4)
    consumer.ack([high])
    until(lambda: in_redis.find("h", "emails", "high") == QueuePosition(False, 6), "the end of it")
    assert in_redis.find("3", "emails", "low") == QueuePosition(False, 6)
    assert in_redis.find("9", "emails", "normal") == QueuePosition(False, 6)


def test_redis_looks_from_both_ends_of_a_long_lane_and_says_so_of_its_middle(
    redis_url: str,
    in_redis: QueuePositions,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_position, "_PAGE", 10)
    monkeypatch.setattr(queue_position, "LOOKED_AT", 30)
    consumer = make_consumer(redis_url)
    make_sender(redis_url).send([envelope(f"{number:03}") for number in range(105)])
    fetch(consumer, 5)
    for number, ahead in ((5, 0), (14, 9), (15, 10), (34, 29), (75, 70), (94, 89), (104, 99)):
        assert in_redis.find(f"{number:03}", "emails", "normal") == QueuePosition(True, 100, ahead)
    assert in_redis.find("050", "emails", "normal") == QueuePosition(None, 100, 99, exact=False)
    assert in_redis.find("003", "emails", "normal").held_by == "worker@test-1"
    assert in_redis.find("never", "emails", "normal").there is None


def test_an_id_is_found_only_as_the_id_of_a_job(
    redis_url: str, in_redis: QueuePositions, make_sender: MakeSender
) -> None:
    sender = make_sender(redis_url)
    sender.send([envelope("1", root_id="2"), envelope('a"ö')])
    assert in_redis.find("2", "emails", "normal").there is False
    assert in_redis.find('a"ö', "emails", "normal") == QueuePosition(True, 2, 1)


def test_asking_changes_nothing(
    redis_url: str, prefix: str, in_redis: QueuePositions, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    consumer = make_consumer(redis_url)
    make_sender(redis_url).send([envelope("1"), envelope("2")])
    fetch(consumer, 1)
    key = lane_key(prefix, "emails", "normal")
    with redis.Redis.from_url(redis_url) as client:
        [before] = client.xpending_range(key, GROUP, "-", "+", 10)
        for job_id in ("1", "2", "3"):
            in_redis.find(job_id, "emails", "normal")
            in_redis.find(job_id, "unknown", "normal")
        [after] = client.xpending_range(key, GROUP, "-", "+", 10)
        assert (before["message_id"], before["times_delivered"]) == (after["message_id"], after["times_delivered"])
        assert client.xlen(key) == 2
        assert not client.exists(lane_key(prefix, "unknown", "normal"))


def test_rabbitmq_reports_an_upper_bound_of_the_jobs_ahead(
    amqp_url: str, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    places = open_positions(amqp_url, prefix=prefix)
    sender = make_sender(amqp_url)
    sender.send([envelope("1"), envelope("2"), envelope("h", priority="high")])
    until(lambda: places.find("2", "emails", "normal") == QueuePosition(None, 3, 2, exact=False), "three that wait")
    assert places.find("h", "emails", "high") == QueuePosition(None, 3, 0, exact=False)
    assert places.find("l", "emails", "low") == QueuePosition(False, 3), "no worker consumes the lane, and it is empty"
    consumer = make_consumer(amqp_url)
    fetch(consumer, 3)
    until(lambda: places.find("2", "emails", "normal") == QueuePosition(None, 0), "all in the worker's hands")


def test_the_memory_broker_reports_the_same_positions() -> None:
    broker = MemoryBroker()
    places = MemoryPositions(broker)
    broker.send([envelope("1"), envelope("2"), envelope("h", priority="high")])
    assert places.find("2", "emails", "normal") == QueuePosition(True, 3, 2)
    MemoryConsumer(broker, ["emails"]).fetch(1, 0)
    assert places.find("2", "emails", "normal") == QueuePosition(True, 2, 1)
    assert places.find("h", "emails", "high") == QueuePosition(None, 2)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "amqp://guest:guest@127.0.0.1:{}//"])
def test_a_position_in_an_unavailable_broker_is_an_error(url: str) -> None:
    places = open_positions(url.format(free_port()), timeout_seconds=1.0)
    with pytest.raises(BrokerUnavailable):
        places.find("1", "emails", "normal")
    places.close()


@pytest.fixture
def ledger(sqlite_url: str) -> Iterator[Database]:
    database = Database(upgraded(sqlite_url))
    queues, kinds = ["notes"], {"ledger.note": "notes"}
    hour = timedelta(hours=1)
    heartbeats.register(database, "w1", engine="celery", queues=queues, kinds=kinds, lease=hour)
    heartbeats.register(database, "d1", engine="dispatcher", queues=["dispatcher"], kinds={}, lease=hour)
    yield database
    database.close()


def test_a_sent_job_is_explained_by_its_broker(
    broker_url: str, positions: QueuePositions, sender: Sender, ledger: Database, make_consumer: MakeConsumer
) -> None:
    waiting = [encode(Note(), due_at=datetime.now(UTC) - timedelta(minutes=ago)) for ago in (3, 2, 1)]
    due.schedule(ledger, waiting)
    assert due_jobs.send_due(ledger, sender) == 3
    last = waiting[-1]
    exact = broker_url.startswith("redis")

    def because() -> str:
        return explain(ledger, last.id, positions).because

    at_most = "" if exact else " at most"
    until(lambda: because() == f"it waits in queue 'notes' at position 3{at_most} (1 live worker)", "its place")
    consumer = make_consumer(broker_url, "notes", name="w1")
    deliveries = fetch(consumer, 3)
    expected = "worker w1 has fetched it" if exact else "nothing waits in its lane of queue 'notes'"
    until(lambda: expected in because(), "its worker")
    consumer.ack(deliveries)
    if exact:
        until(lambda: "the broker does not have it; dispatcher d1 sends it again" in because(), "its loss")


def test_an_unrecorded_job_is_looked_for_in_every_queue(
    broker_url: str, positions: QueuePositions, sender: Sender, ledger: Database
) -> None:
    job = encode(Note(), priority="low")
    sender.send([job])
    if broker_url.startswith("redis"):
        explanation = explain(ledger, job.id, positions)
        assert (
            explanation.because
            == "it waits in queue 'notes' at position 1 (1 live worker); it is on record when it begins"
        )
        assert explanation.facts["priority"] == "low"
        lost = explain(ledger, encode(Note()).id, positions, queues=["emails"])
        assert "nor has the broker (queues dispatcher, emails, notes)" in lost.because
    else:
        until(lambda: explain(ledger, job.id, positions).facts.get("waiting") == {"notes": 1}, "the job")
        assert "either it waits in the broker" in explain(ledger, job.id, positions).because


def test_a_job_held_by_a_dead_worker_says_when_it_is_taken_over_and_then_by_which_worker(
    redis_url: str, in_redis: QueuePositions, ledger: Database, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    lease = timedelta(seconds=0.5)
    heartbeats.register(ledger, "dead", engine="celery", queues=["notes"], kinds={}, lease=-lease)
    make_sender(redis_url).send([encode(Note())])
    dead = make_consumer(redis_url, "notes", name="dead", lease_seconds=lease.total_seconds())
    [delivery] = fetch(dead, 1)
    claim = claimed(ledger, decode(delivery.envelope), worker="dead")
    dead.close()

    def because() -> str:
        return explain(ledger, claim.message.id, in_redis, lease=lease).because

    assert "worker dead, which began attempt 1, is dead or silent" in because()
    assert "another worker takes it over by" in because()
    fetch(make_consumer(redis_url, "notes", name="w1", lease_seconds=lease.total_seconds()), 1)
    assert "worker w1 has taken it over" in because()


def test_a_job_that_redis_lost_under_a_dead_worker_is_sent_again(
    redis_url: str, in_redis: QueuePositions, ledger: Database, make_consumer: MakeConsumer
) -> None:
    heartbeats.register(ledger, "dead", engine="celery", queues=["notes"], kinds={}, lease=-timedelta(seconds=1))
    claim = claimed(ledger, message(Note()), worker="dead")
    make_consumer(redis_url, "notes", name="w1")
    explanation = explain(ledger, claim.message.id, in_redis)
    assert "the broker does not have it, so a dispatcher sends it again" in explanation.because
