"""Queues of one worker take turns, and the lowest priority has a share."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.brokers import envelope, fetch
from support.polling import until

from penstock.producers.senders import Sender
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas.jobs.kind import PRIORITIES, Priority
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.brokers.turns import LOW_EVERY, Lane, Turns

MakeSender = Callable[..., Sender]
COUNT = 120


def lanes_of(queues: str, *priorities: Priority) -> dict[Lane, deque[Lane]]:
    """Lanes that never become empty."""
    return {(queue, priority): deque([(queue, priority)] * 10_000) for queue in queues for priority in priorities}


def taken(turns: Turns, waiting: dict[Lane, deque[Lane]], limits: Iterator[int], count: int) -> Counter[Lane]:
    counts: list[Lane] = []
    queues = {queue for queue, _ in waiting}
    while len(counts) < count:
        limit = min(next(limits), count - len(counts))
        more = turns.take(queues, waiting, limit)
        assert len(more) == limit
        counts += more
    return Counter(counts)


def always(limit: int) -> Iterator[int]:
    while True:
        yield limit


def at_random() -> Iterator[int]:
    while True:
        yield random.randrange(1, 60)


limits = pytest.mark.parametrize("limits", [always(1), always(7), always(100), at_random()], ids=["1", "7", "100", "?"])


@limits
def test_queues_get_shares_by_their_weights(limits: Iterator[int]) -> None:
    counts = taken(Turns({"a": 1, "b": 2, "c": 5}), lanes_of("abcd", "normal"), limits, 2700)
    for queue, share in {"a": 300, "b": 600, "c": 1500, "d": 300}.items():
        assert abs(counts[queue, "normal"] - share) <= 30


@limits
def test_a_tenth_is_of_the_lowest_priority_and_the_rest_of_the_highest(limits: Iterator[int]) -> None:
    counts = taken(Turns(), lanes_of("ab", *PRIORITIES), limits, 2000)
    assert abs(counts["a", "low"] + counts["b", "low"] - 2000 // LOW_EVERY) <= 10
    assert abs(counts["a", "high"] - counts["b", "high"]) <= 60
    assert counts["a", "normal"] == counts["b", "normal"] == 0


@limits
def test_a_lane_that_was_empty_for_long_does_not_make_up_for_it(limits: Iterator[int]) -> None:
    turns, waiting = Turns(), lanes_of("ab", "normal")
    waiting["c", "normal"], waiting["c", "low"] = deque(), deque()
    taken(turns, waiting, limits, 3000)
    waiting["c", "normal"].extend([("c", "normal")] * 5000)
    waiting["c", "low"].extend([("c", "low")] * 5000)
    counts = taken(turns, waiting, limits, 1000)
    assert abs(counts["c", "normal"] - 300) <= 60
    assert abs(counts["c", "low"] - 100) <= 10


def test_what_one_lane_leaves_goes_to_the_others() -> None:
    waiting = lanes_of("abc", "normal")
    waiting["a", "normal"] = deque([("a", "normal")] * 3)
    counts = Counter(Turns().take("abc", waiting, 90))
    assert counts == {("a", "normal"): 3, ("b", "normal"): 44, ("c", "normal"): 43}
    assert Turns().take("x", waiting, 90) == []


@pytest.fixture(params=["redis", "rabbitmq", "memory"])
def open_pair(
    request: pytest.FixtureRequest, prefix: str, closing: ExitStack, make_sender: MakeSender
) -> Callable[..., tuple[Sender, Consumer]]:
    """Opens a sender and a consumer of queues with weights."""

    def open_pair(**weights: int) -> tuple[Sender, Consumer]:
        if request.param == "memory":
            broker = MemoryBroker()
            return broker, MemoryConsumer(broker, weights, weights)
        url = request.getfixturevalue({"redis": "redis_url", "rabbitmq": "amqp_url"}[request.param])
        consumer = open_consumer(url, weights, name="w", prefix=prefix, weights=weights)
        closing.callback(consumer.close)
        consumer.open()
        return make_sender(url), consumer

    return open_pair


def all_waiting(sender: Sender, consumer: Consumer, sent: dict[Lane, int]) -> None:
    """Send as many to each lane, and wait until the broker counts them."""
    envelopes = [envelope(str(i), queue, priority) for (queue, priority), n in sent.items() for i in range(n)]
    sender.send(envelopes)
    depths = Counter[str]()
    for (queue, _), count in sent.items():
        depths[queue] += count
    until(lambda: sender.depths(list(depths)) == depths, "all messages")


def drained(consumer: Consumer, count: int, limit: int) -> list[Lane]:
    """The lanes of so many deliveries, each fetch acknowledged before the next."""
    counts: list[Lane] = []
    while len(counts) < count:
        deliveries = fetch(consumer, min(limit, count - len(counts)))
        consumer.ack(deliveries)
        counts += [(delivery.envelope.queue, delivery.envelope.priority) for delivery in deliveries]
    return counts


@pytest.mark.parametrize("limit", [1, 10, 40])
def test_a_long_queue_does_not_keep_the_later_ones_waiting(
    open_pair: Callable[..., tuple[Sender, Consumer]], limit: int
) -> None:
    sender, consumer = open_pair(a=1, b=1, z=2)
    all_waiting(sender, consumer, {("a", "normal"): 2 * COUNT, ("b", "normal"): COUNT, ("z", "normal"): COUNT})
    counts = Counter(queue for queue, _ in drained(consumer, COUNT, limit))
    # A quarter, a quarter and a half; RabbitMQ delivers a lane's first messages a moment after another's.
    assert counts["z"] > COUNT // 4
    assert counts["b"] > COUNT // 8
    assert counts["a"] > COUNT // 8
    assert len(drained(consumer, 3 * COUNT, 100)) == 3 * COUNT


def test_low_jobs_have_a_share_while_higher_ones_wait(open_pair: Callable[..., tuple[Sender, Consumer]]) -> None:
    sender, consumer = open_pair(a=1, b=1)
    all_waiting(sender, consumer, {("a", "normal"): COUNT, ("b", "high"): COUNT, ("a", "low"): COUNT})
    counts = Counter(priority for _, priority in drained(consumer, COUNT, 1))
    assert COUNT // 20 <= counts["low"] <= COUNT // 5
    assert counts["high"] >= COUNT // 4  # RabbitMQ's next high job may come a moment after the normal one
    rest = Counter(priority for _, priority in drained(consumer, 2 * COUNT, 30))
    assert counts + rest == {"normal": COUNT, "high": COUNT, "low": COUNT}
