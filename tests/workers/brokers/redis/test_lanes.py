"""Evidence from outside of the jobs that a broker still has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from support.brokers import envelope, fetch
from support.polling import until

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders import Sender
from penstock.producers.senders.rabbitmq.names import lane_name
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.producers.senders.redis.sender import lane_key
from penstock.workers.brokers import Consumer
from penstock.workers.brokers.loss_detection import LossDetector, open_loss_detector
from penstock.workers.local.up.redis_server import RedisServer, free_port

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]
NONE = timedelta()
HIGH, NORMAL, LOW = ("emails", "high"), ("emails", "normal"), ("emails", "low")


@pytest.fixture
def lanes(broker_url: str, prefix: str) -> Iterator[LossDetector]:
    lanes = open_loss_detector(broker_url, prefix=prefix)
    yield lanes
    lanes.close()


def test_a_lane_that_is_missing_or_empty_holds_nothing(lanes: LossDetector, sender: Sender, consumer: Consumer) -> None:
    assert lanes.oldest([("never-declared", "normal"), NORMAL]) == {("never-declared", "normal"): NONE, NORMAL: NONE}
    sender.send([envelope("1")])
    until(lambda: lanes.oldest([NORMAL])[NORMAL] != NONE, "the job")
    ages = lanes.oldest([HIGH, NORMAL, LOW])
    assert (ages[HIGH], ages[LOW]) == (NONE, NONE)
    consumer.ack(fetch(consumer, 1))
    until(lambda: lanes.oldest([NORMAL]) == {NORMAL: NONE}, "the end of the job")
    assert lanes.oldest([]) == {}


def test_redis_reports_the_age_of_the_oldest_message_and_counts_what_workers_hold(
    redis_url: str, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer
) -> None:
    lanes, sender, consumer = (
        open_loss_detector(redis_url, prefix=prefix),
        make_sender(redis_url),
        make_consumer(redis_url),
    )

    def age() -> timedelta:
        ages = lanes.oldest([NORMAL])[NORMAL]
        assert ages is not None
        return ages

    sender.send([envelope("1")])
    [first] = fetch(consumer, 1)
    until(lambda: age() > timedelta(milliseconds=300))
    sender.send([envelope("2")])
    assert age() > timedelta(milliseconds=300), "the first is with a worker"
    before = age()
    consumer.ack([first])
    assert age() < before, "and is done"
    lanes.close()


def test_rabbitmq_reports_no_age_while_messages_are_ready_and_an_emptied_queue_shows(
    amqp_url: str, prefix: str, make_sender: MakeSender
) -> None:
    lanes = open_loss_detector(amqp_url, prefix=prefix)
    make_sender(amqp_url).send([envelope("1")])
    until(lambda: lanes.oldest([NORMAL]) == {NORMAL: None})
    connection = connect(amqp_url, timeout_seconds=10)
    connection.channel().queue_delete(lane_name(prefix, "emails", "normal"))
    connection.close()
    assert lanes.oldest([NORMAL]) == {NORMAL: NONE}


def test_a_wiped_redis_is_born_again(tmp_path: Path, prefix: str) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    first, second = open_loss_detector(server.url, prefix=prefix), open_loss_detector(server.url, prefix=prefix)
    times = [datetime(2026, 1, day, 12, 0, 0, 123456, tzinfo=UTC) for day in (1, 2, 3)]
    try:
        assert first.data_since(lambda: times[0]) == times[0]
        assert second.data_since(lambda: times[1]) == times[0], "of several dispatchers one has noticed"
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        assert second.data_since(lambda: times[2]) == times[2]
        assert first.data_since(lambda: times[0]) == times[2]
        with redis.Redis.from_url(server.url) as client:
            client.set(f"{prefix}:incarnation", "something else")
        assert first.data_since(lambda: times[0]) is None
        with redis.Redis.from_url(server.url) as client:
            client.rpush(lane_key(prefix, "emails", "normal"), "not a stream")
        with pytest.raises(BrokerUnavailable):
            first.oldest([NORMAL])
    finally:
        first.close()
        second.close()
        server.stop()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "amqp://guest:guest@127.0.0.1:{}//"])
def test_the_age_of_lanes_of_an_unavailable_broker_is_an_error(url: str) -> None:
    lanes = open_loss_detector(url.format(free_port()), timeout_seconds=1.0)
    with pytest.raises(BrokerUnavailable):
        lanes.oldest([NORMAL])
    lanes.close()
