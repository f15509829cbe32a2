"""A RabbitMQ short of memory or disk space, which reads nothing from publishers: these keep their timeout."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import acme
import pytest
import sqlalchemy as sa
from support.brokers import envelope, fetch
from support.polling import retry, until
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server
from support.stack import Stack

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.sql.tables import jobs
from penstock.producers.senders import AsyncSender, Sender, open_async_sender, open_sender
from penstock.producers.senders.batching import BatchingSender
from penstock.workers.brokers import open_consumer

BLOCKED = "blocks publishers"
AT_ONCE = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitmqNode]:
    if find_rabbitmq_server() is None:
        pytest.skip("rabbitmq-server is not installed: no node that may run out of memory")
    node = RabbitmqNode(tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.kill()


@pytest.fixture(params=["memory", "disk space"])
def alarm(node: RabbitmqNode, request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    yield lambda: node.set_alarm(memory=request.param == "memory")
    node.clear_alarms()


def refused(send: Callable[[], object]) -> bool:
    """Whether it is by now: RabbitMQ may take a message more in the moment of the alarm."""
    try:
        send()
    except BrokerUnavailable as error:
        return BLOCKED in str(error)
    return False


def test_senders_give_up_after_their_timeout_and_consumers_go_on(
    node: RabbitmqNode, prefix: str, alarm: Callable[[], None]
) -> None:
    def sender(**options: dict[str, int]) -> Sender:
        return open_sender(node.url, prefix=prefix, timeout_seconds=0.5, **options)

    with (
        closing(sender()) as used,
        closing(sender()) as new,
        closing(sender(max_lengths={"emails": 1_000_000})) as limited,
        closing(open_consumer(node.url, ["emails"], name="c", prefix=prefix)) as consumer,
    ):
        used.send([envelope(str(number)) for number in range(30)])
        limited.send([envelope("30")])
        alarm()
        until(lambda: refused(lambda: used.send([envelope("more")])), "an alarm")
        large = envelope("large")
        large.body = b"x" * 200_000
        for send in (used.send, new.send, limited.send):
            for envelopes in ([envelope()], [envelope(str(number)) for number in range(1200)], [large] * 100):
                with pytest.raises(BrokerUnavailable, match=BLOCKED):
                    send(envelopes)
        for unready in (used, new):
            with pytest.raises(BrokerUnavailable, match=BLOCKED):
                unready.ping()
        threads = [threading.Thread(target=refused, args=[lambda: used.send([envelope()])]) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        consumer.open()
        consumer.ack(fetch(consumer, 31))


@pytest.mark.parametrize("gathers", [False, True], ids=["alone", "gathered"])
def test_coroutines_give_up_after_the_timeout(
    node: RabbitmqNode, prefix: str, alarm: Callable[[], None], gathers: bool
) -> None:
    async def run() -> None:
        sender: AsyncSender = open_async_sender(node.url, prefix=prefix, timeout_seconds=0.5)
        if gathers:
            sender = BatchingSender(sender)
        await sender.send([envelope()])
        alarm()
        while True:
            sends = (sender.send([envelope(str(number))]) for number in range(AT_ONCE))
            answers = await asyncio.gather(*sends, return_exceptions=True)
            if None not in answers:
                break
        assert all(isinstance(answer, BrokerUnavailable) and BLOCKED in str(answer) for answer in answers)
        await sender.close()

    asyncio.run(run())


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_workers_drain_a_rabbitmq_that_blocks_publishers(
    engine: str, node: RabbitmqNode, alarm: Callable[[], None], tmp_path: Path
) -> None:
    stack = Stack(engine, node.url, f"t{uuid.uuid4().hex[:10]}", tmp_path)
    try:
        select = sa.select(sa.func.count()).where(jobs.c.state == "succeeded")

        def succeeded() -> int:
            return int(stack.database.read(lambda connection: connection.scalar(select)))

        stack.producer.enqueue_many([acme.Add(a=number, b=1) for number in range(300)])
        alarm()
        worker = stack.start_worker()
        until(lambda: succeeded() == 300, "all jobs", unless=worker.poll)
        until(lambda: refused(lambda: stack.producer.enqueue(acme.Add(a=1, b=1))), "an alarm")
        node.clear_alarms()
        handle = retry(lambda: stack.producer.enqueue(acme.Add(a=1, b=1)), BrokerUnavailable)
        assert handle.result(timeout=60)["sum"] == 2
        assert worker.poll() is None
    finally:
        stack.stop()
        print(stack.logs())
