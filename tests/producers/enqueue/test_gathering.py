"""Coroutines that enqueue at a time are sent together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.ledgers import Note
from support.polling import until_async

from penstock.config.errors import BrokerUnavailable
from penstock.producers import AsyncProducer
from penstock.producers.senders.batching import AT_A_TIME
from penstock.schemas.wire.codec import Envelope


class Sender:
    """Records the envelopes; each call waits until it may go on."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.started, self.go_on = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None

    async def send(self, envelopes: Sequence[Envelope]) -> None:
        self.calls.append([envelope.queue for envelope in envelopes])
        self.started.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


def gathering(sender: Sender, **max_lengths: int) -> AsyncProducer:
    producer = AsyncProducer("redis://127.0.0.1:1/0", sender=sender, max_lengths=max_lengths, queues=["full"])
    producer.gather()
    return producer


async def send_many(sender: Sender, producer: AsyncProducer, count: int) -> list[object]:
    first = asyncio.create_task(producer.enqueue(Note()))
    await sender.started.wait()
    others = [asyncio.create_task(producer.enqueue(Note())) for _ in range(count)]
    await asyncio.sleep(0)
    sender.go_on.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


def test_jobs_enqueued_while_one_is_sent_go_together_after_it() -> None:
    async def run() -> None:
        sender = Sender()
        handles = await send_many(sender, gathering(sender), 20)
        assert [len(call) for call in sender.calls] == [1, 20]
        assert len({handle.id for handle in handles}) == 21  # type: ignore[attr-defined]

    asyncio.run(run())


def test_callers_of_a_failed_batch_all_get_its_error_and_the_next_is_sent() -> None:
    async def run() -> None:
        sender = Sender()
        sender.error = BrokerUnavailable("down")
        producer = gathering(sender)
        assert {type(answer) for answer in await send_many(sender, producer, 3)} == {BrokerUnavailable}
        sender.error = None
        assert (await producer.enqueue(Note())).queue == "notes"

    asyncio.run(run())


def test_what_gathers_while_the_broker_proves_to_be_away_does_not_wait_for_another_timeout() -> None:
    async def run() -> None:
        sender = Sender()
        sender.error = BrokerUnavailable("down")
        producer = gathering(sender)
        tasks = []
        for number in range(AT_A_TIME):
            tasks.append(asyncio.create_task(producer.enqueue(Note())))
            await until_async(lambda number=number: len(sender.calls) == number + 1)
        tasks += [asyncio.create_task(producer.enqueue(Note())) for _ in range(3)]
        await asyncio.sleep(0)
        sender.go_on.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(answer) for answer in answers} == {BrokerUnavailable}
        assert len(sender.calls) == AT_A_TIME, "and is not sent"

    asyncio.run(run())


def test_a_caller_that_stops_waiting_does_not_disturb_the_others() -> None:
    async def run() -> None:
        sender = Sender()
        producer = gathering(sender)
        first, second = (asyncio.create_task(producer.enqueue(Note())) for _ in range(2))
        await sender.started.wait()
        first.cancel()
        sender.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).queue == "notes"

    asyncio.run(run())


def test_a_queue_with_a_limit_is_sent_to_alone() -> None:
    async def run() -> None:
        sender = Sender()
        sender.go_on.set()
        producer = gathering(sender, full=1)
        await asyncio.gather(producer.enqueue(Note(), queue="full"), producer.enqueue(Note()), producer.enqueue(Note()))
        assert sorted(sender.calls) == [["full"], ["notes", "notes"]]

    asyncio.run(run())
