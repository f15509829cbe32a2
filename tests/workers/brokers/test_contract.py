"""The contract of every broker with senders and consumers."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

import pytest
from support.brokers import envelope, fetch, ids
from support.polling import until

from penstock.config.errors import BrokerUnavailable, ConfigError, QueueFull
from penstock.producers.senders import Sender, open_async_sender, open_sender
from penstock.producers.senders.rabbitmq import sender as rabbitmq
from penstock.producers.senders.redis import connections
from penstock.workers.brokers import Consumer, open_consumer

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]
DOWN = ["redis://:secret@127.0.0.1:9/0", "amqp://guest:secret@127.0.0.1:9//"]
NOWHERE = ["redis://:secret@nowhere.invalid:6379/0", "amqp://guest:secret@nowhere.invalid:5672//"]


def test_headers_and_body_arrive_as_they_were_sent(sender: Sender, consumer: Consumer) -> None:
    nested = {"version": 2, "tenant": "Zürich ☂", "none": None, "list": [1, "two", {"three": 3.5}], "yes": True}
    sent = envelope("a", penstock=nested, eta=None, big=2**40)
    sent.body = '[[],{"name":"Ünïcode ☂"},null]'.encode() + b"\xff\x00"
    sender.send([sent])
    [delivery] = fetch(consumer, 1)
    assert delivery.envelope == sent
    assert delivery.raw == sent.body
    assert delivery.deliveries == 1


def test_an_acknowledged_delivery_is_gone(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope(str(i)) for i in range(5)])
    consumer.ack(fetch(consumer, 5))
    assert consumer.fetch(10, 0.3) == []
    until(lambda: sender.depths(["emails"]) == {"emails": 0}, "an empty queue")


def test_a_lane_keeps_its_order(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope(str(i)) for i in range(50)])
    sender.send([envelope("50")])
    assert ids(fetch(consumer, 51, limit=20)) == [str(i) for i in range(51)]


def test_higher_lanes_come_first(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope("l", priority="low"), envelope("n"), envelope("h", priority="high")])
    until(lambda: sender.depths(["emails"]) == {"emails": 3})
    deliveries = fetch(consumer, 3)
    assert ids(deliveries) == ["h", "n", "l"]
    assert [delivery.envelope.priority for delivery in deliveries] == ["high", "normal", "low"]


def test_a_fetch_takes_no_more_of_a_lane_than_its_limit(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope(str(i)) for i in range(30)])
    seen = []
    while len(seen) < 30:
        deliveries = consumer.fetch(7, 1.0)
        assert len(deliveries) <= 7
        consumer.ack(deliveries)
        seen += ids(deliveries)
    assert seen == [str(i) for i in range(30)]


def test_a_consumer_that_stopped_consuming_keeps_nothing_from_others(
    broker_url: str, sender: Sender, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    sender.send([envelope("a"), envelope("b")])
    [running] = fetch(consumer, 1, limit=1)
    consumer.stop_consuming()
    sender.send([envelope(name) for name in "cde"])
    other = make_consumer(broker_url, name="worker@test-2")
    assert sorted(ids(fetch(other, 4))) == ["b", "c", "d", "e"]
    consumer.ack([running])
    assert other.fetch(1, 0.3) == []


def test_a_consumer_whose_worker_is_blocked_keeps_nothing_from_others(
    broker_url: str, sender: Sender, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    sender.send([envelope("a"), envelope("b")])
    [running] = fetch(consumer, 1, limit=1)
    consumer.set_blocked(True)
    sender.send([envelope(name) for name in "cde"])
    other = make_consumer(broker_url, name="worker@test-2")
    deliveries = fetch(other, 4)
    assert sorted(ids(deliveries)) == ["b", "c", "d", "e"]
    other.ack(deliveries)
    other.close()
    sender.send([envelope("f")])
    assert consumer.fetch(1, 0.3) == []
    consumer.set_blocked(False)
    assert ids(fetch(consumer, 1)) == ["f"]
    consumer.ack([running])


def test_a_fetch_of_none_takes_none(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope("a"), envelope("b")])
    assert consumer.fetch(0, 0.1) == []
    assert ids(consumer.fetch(1, 10)) == ["a"]
    assert consumer.fetch(0, 0.1) == []
    assert ids(consumer.fetch(1, 10)) == ["b"]


def test_a_fetch_of_an_empty_queue_returns_after_the_timeout(consumer: Consumer) -> None:
    started = time.monotonic()
    assert consumer.fetch(10, 0.3) == []
    assert time.monotonic() - started >= 0.25


def test_queues_do_not_mix(broker_url: str, sender: Sender, make_consumer: MakeConsumer) -> None:
    sender.send([envelope("a", queue="emails"), envelope("b", queue="reports")])
    emails = make_consumer(broker_url, "emails", name="w1")
    reports = make_consumer(broker_url, "reports", name="w2")
    assert ids(fetch(reports, 1)) == ["b"]
    assert ids(fetch(emails, 1)) == ["a"]


def test_a_released_delivery_comes_again_at_once_to_anyone(
    broker_url: str, sender: Sender, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    sender.send([envelope("a", note=["kept"])])
    deliveries = fetch(consumer, 1)
    other = make_consumer(broker_url, name="other@test-2")
    consumer.cancel_queue("emails")
    consumer.fetch(1, 0)  # releases the queue
    consumer.release(deliveries)
    [again] = fetch(other, 1)
    assert again.envelope.headers == deliveries[0].envelope.headers
    other.ack([again])
    assert consumer.fetch(1, 0.2) == []


def test_settling_twice_is_harmless(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope("a"), envelope("b")])
    first, second = fetch(consumer, 2)
    consumer.ack([first])
    consumer.ack([first])
    consumer.release([first])
    consumer.ack([second])
    assert consumer.fetch(10, 0.3) == []


def test_acknowledging_out_of_order_settles_each_once(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope(str(i)) for i in range(10)])
    deliveries = fetch(consumer, 10)
    consumer.ack([deliveries[i] for i in (9, 3, 4)])
    consumer.ack([deliveries[i] for i in (0, 1, 2, 7)])
    consumer.release([deliveries[i] for i in (5, 6, 8)])
    again = fetch(consumer, 3)
    assert sorted(ids(again)) == ["5", "6", "8"]
    consumer.ack(again)
    until(lambda: sender.depths(["emails"]) == {"emails": 0})


def test_unsettled_deliveries_of_a_closed_consumer_go_to_another(
    broker_url: str, sender: Sender, make_consumer: MakeConsumer
) -> None:
    sender.send([envelope(str(i)) for i in range(3)])
    first = make_consumer(broker_url, name="first@test-1", lease_seconds=0.5)
    fetch(first, 3)
    first.close()
    second = make_consumer(broker_url, name="second@test-2", lease_seconds=0.5)
    again = fetch(second, 3)
    assert sorted(ids(again)) == ["0", "1", "2"]
    assert {delivery.deliveries for delivery in again} == {2}


def test_queues_can_be_added_and_cancelled(sender: Sender, consumer: Consumer) -> None:
    consumer.add_queue("reports")
    sender.send([envelope("r", queue="reports")])
    consumer.ack(fetch(consumer, 1))
    consumer.cancel_queue("reports")
    assert consumer.queues == {"emails"}
    consumer.fetch(1, 0.1)
    sender.send([envelope("r2", queue="reports"), envelope("e")])
    assert ids(fetch(consumer, 1)) == ["e"]
    assert consumer.fetch(10, 0.3) == []


def test_a_consumer_of_no_queue_waits_until_it_has_one(
    broker_url: str, prefix: str, sender: Sender, make_consumer: MakeConsumer
) -> None:
    consumer = make_consumer(broker_url)
    consumer.cancel_queue("emails")
    assert consumer.fetch(5, 0.1) == []
    sender.send([envelope("a")])
    consumer.add_queue("emails")
    assert ids(fetch(consumer, 1)) == ["a"]


def test_wake_ends_a_waiting_fetch(consumer: Consumer) -> None:
    done = threading.Event()

    def wait() -> None:
        assert consumer.fetch(10, 600) == []
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not done.wait(0.05):
        consumer.wake()
    thread.join()


def test_a_message_sent_while_a_fetch_waits_is_delivered(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope("warm")])
    consumer.ack(fetch(consumer, 1))
    timer = threading.Timer(0.3, lambda: sender.send([envelope("a")]))
    timer.start()
    assert ids(consumer.fetch(10, 60)) == ["a"]
    timer.join()


def test_ten_thousand_in_batches_arrive_exactly_once(
    broker_url: str, sender: Sender, make_consumer: MakeConsumer
) -> None:
    for start in range(0, 10_000, 2_500):
        sender.send([envelope(str(i)) for i in range(start, start + 2_500)])
    seen: list[str] = []
    lock = threading.Lock()

    def drain(consumer: Consumer) -> None:
        while True:
            deliveries = consumer.fetch(100, 0.2)
            consumer.ack(deliveries)
            with lock:
                seen.extend(ids(deliveries))
                if len(seen) >= 10_000:
                    return

    consumers = [make_consumer(broker_url, name=f"w{i}") for i in range(2)]
    threads = [threading.Thread(target=drain, args=(consumer,)) for consumer in consumers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, seen)) == list(range(10_000))
    until(lambda: sender.depths(["emails"]) == {"emails": 0})


def test_a_sender_may_be_shared_by_many_threads(sender: Sender, consumer: Consumer) -> None:
    def send(worker: int) -> None:
        for i in range(20):
            sender.send([envelope(f"{worker}-{i}")])

    threads = [threading.Thread(target=send, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job_ids = ids(fetch(consumer, 160))
    assert len(set(job_ids)) == 160
    for worker in range(8):
        assert [id for id in job_ids if id.startswith(f"{worker}-")] == [f"{worker}-{i}" for i in range(20)]


def test_acknowledging_from_other_threads_is_safe(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope(str(i)) for i in range(400)])
    threads = []
    for _ in range(40):
        deliveries = fetch(consumer, 10)
        threads.append(threading.Thread(target=consumer.ack, args=(deliveries,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    until(lambda: sender.depths(["emails"]) == {"emails": 0})
    assert consumer.fetch(10, 0.2) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_sender_may_be_used_on_both_sides_of_a_fork(sender: Sender, consumer: Consumer) -> None:
    sender.send([envelope("before")])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for i in range(10):
                sender.send([envelope(f"child-{i}")])
            sender.close()
            status = 0
        finally:
            os._exit(status)
    for i in range(10):
        sender.send([envelope(f"parent-{i}")])
    _, status = os.waitpid(child, 0)
    assert status == 0
    sender.send([envelope("after")])
    assert len(set(ids(fetch(consumer, 22)))) == 22


def test_a_full_queue_refuses_and_nothing_is_sent(broker_url: str, make_sender: MakeSender) -> None:
    sender = make_sender(broker_url, max_lengths={"emails": 3})
    sender.send([envelope("a"), envelope("b", priority="high")])
    with pytest.raises(QueueFull) as caught:
        sender.send([envelope("c"), envelope("d")])
    assert (caught.value.queue, caught.value.max_length) == ("emails", 3)
    until(lambda: sender.depths(["emails"]) == {"emails": 2})
    sender.send([envelope("other", queue="reports"), envelope("c")])
    with pytest.raises(QueueFull):
        sender.send([envelope("d")])
    assert sender.depths(["emails", "reports"]) == {"emails": 3, "reports": 1}


def test_a_queue_that_was_full_takes_jobs_again_once_some_are_done(
    broker_url: str, make_sender: MakeSender, consumer: Consumer
) -> None:
    sender = make_sender(broker_url, max_lengths={"emails": 1})
    sender.send([envelope("a")])
    with pytest.raises(QueueFull):
        sender.send([envelope("b")])
    consumer.ack(fetch(consumer, 1))

    def sent() -> bool:
        try:
            sender.send([envelope("b")])
        except QueueFull:
            return False
        return True

    until(sent)


def test_a_connection_idle_for_long_is_replaced(
    sender: Sender, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.send([envelope("a")])
    for module in (rabbitmq, connections):
        monkeypatch.setattr(module, "TRUST_IDLE_SECONDS", -1.0)
    sender.send([envelope("b")])
    sender.send([envelope("c"), envelope("d")])
    assert ids(fetch(consumer, 4)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("url", DOWN)
def test_a_broker_that_is_down_is_named_without_its_password(url: str, prefix: str) -> None:
    sender = open_sender(url, prefix=prefix, timeout_seconds=2)
    consumer = open_consumer(url, ["emails"], name="w", prefix=prefix)
    for call in (lambda: sender.send([envelope()]), sender.ping, lambda: sender.depths(["emails"]), consumer.open):
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9") as caught:
            call()
        assert "secret" not in str(caught.value)
    with pytest.raises(BrokerUnavailable):
        consumer.fetch(1, 0)
    consumer.close()
    sender.close()


@pytest.mark.parametrize("url", NOWHERE)
def test_a_host_without_an_address_is_named(url: str, prefix: str) -> None:
    with pytest.raises(BrokerUnavailable, match=r"nowhere\.invalid") as caught:
        open_sender(url, prefix=prefix, timeout_seconds=1).ping()
    assert "secret" not in str(caught.value)


def test_an_async_sender_sends_and_leaves_nothing_open(broker_url: str, prefix: str, consumer: Consumer) -> None:
    sender = open_async_sender(broker_url, prefix=prefix)

    async def send(name: str) -> None:
        await sender.ping()
        await asyncio.gather(*(sender.send([envelope(f"{name}-{i}")]) for i in range(20)))
        await sender.send([envelope(f"{name}-many-{i}") for i in range(700)])

    async def main() -> None:
        await send("first")
        await sender.close()

    asyncio.run(main())
    assert len(set(ids(fetch(consumer, 720)))) == 720


@pytest.mark.parametrize("url", DOWN)
def test_an_async_sender_names_a_broker_that_is_down(url: str, prefix: str) -> None:
    async def main() -> None:
        sender = open_async_sender(url, prefix=prefix, timeout_seconds=2)
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9"):
            await sender.send([envelope()])
        await sender.close()

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_port_that_is_not_a_number_is_a_wrong_setting(scheme: str) -> None:
    with pytest.raises(ConfigError, match="notaport") as caught:
        open_sender(f"{scheme}://:secret@127.0.0.1:notaport/0").ping()
    assert "secret" not in str(caught.value)
