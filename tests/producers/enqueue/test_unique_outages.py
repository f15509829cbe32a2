"""Unique jobs during outages, crashes and races."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from producers.enqueue.unique_rows import HOUR, rows, run
from support.ledgers import change, row_of
from support.unique_jobs import Existing, Plain, Reject, Replace

from penstock.config.errors import BrokerUnavailable, DuplicateJob, LedgerUnavailable, QueueFull
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.enqueue import enter
from penstock.producers import AsyncProducer, Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import State
from penstock.schemas.wire.codec import Envelope, encode
from penstock.workers.dispatcher import due_jobs

TESTS = Path(__file__).parents[2]


def test_a_unique_job_waits_for_the_dispatcher_while_the_broker_is_unavailable(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    sender.down = True
    handle = producer.enqueue(Reject(n=1))
    with pytest.raises(DuplicateJob):
        producer.enqueue(Reject(n=1))
    assert handle.status().state == "scheduled"
    with pytest.raises(BrokerUnavailable):
        producer.enqueue_many([Reject(n=2), Plain()])  # the other one is not on record
    sender.down = False
    assert due_jobs.send_due(ledger, sender) == 2
    run(ledger, sender, handle)


def test_a_crash_before_the_sending_leaves_a_job_that_the_dispatcher_sends(
    sender: MemoryBroker, ledger: Database, ledger_url: str
) -> None:
    class Crash(BaseException):
        pass

    class Dying(MemoryBroker):
        def send(self, envelopes: Any) -> None:
            raise Crash

    with Producer("redis://unused", sender=Dying(), database_url=ledger_url) as producer, pytest.raises(Crash):
        producer.enqueue(Reject(n=1))
    [row] = rows(ledger)
    assert row.state == State.SCHEDULED
    assert due_jobs.send_due(ledger, sender) == 0  # its sender has a while
    change(ledger, row.id, due_at=datetime.now(UTC))
    assert due_jobs.send_due(ledger, sender) == 1


def test_a_full_queue_refuses_a_unique_job_and_leaves_all_as_it_was(ledger: Database, ledger_url: str) -> None:
    sender = MemoryBroker(max_lengths={"uniq": 2})
    with Producer("redis://unused", sender=sender, database_url=ledger_url) as producer:
        old = producer.enqueue(Replace(n=1))
        delayed = producer.enqueue(Replace(n=2), delay=HOUR)
        producer.enqueue(Plain())
        for job in (Replace(n=1), Replace(n=2), Reject(n=3)):
            with pytest.raises(QueueFull):
                producer.enqueue(job)
        assert {row.id for row in rows(ledger)} == {old.id, delayed.id}
        assert row_of(ledger, delayed.id).due_at > datetime.now(UTC) + HOUR / 2
        assert [handle.status().state for handle in (old, delayed)] == ["scheduled", "scheduled"]
        sender.max_lengths.clear()
        assert producer.enqueue(Reject(n=3)).created
        again = producer.enqueue(Replace(n=1))
        assert (old.status().state, again.status().state) == ("cancelled", "queued")


def test_a_unique_job_is_refused_without_its_ledger(sender: MemoryBroker) -> None:
    url = "postgresql+psycopg://u:s3cret@127.0.0.1:1/x"
    with Producer("redis://unused", sender=sender, database_url=url) as producer:
        with pytest.raises(LedgerUnavailable):
            producer.enqueue(Reject(n=1))
        producer.enqueue(Plain())
    assert len(sender.sent) == 1


def test_an_async_producer_does_the_same(redis_url: str, prefix: str, ledger_url: str, ledger: Database) -> None:
    async def go() -> None:
        async with AsyncProducer(redis_url, prefix=prefix, database_url=ledger_url) as producer:
            first = await producer.enqueue(Existing(n=1))
            answers = await asyncio.gather(*(producer.enqueue(Existing(n=1)) for _ in range(10)))
            assert {(handle.id, handle.created) for handle in answers} == {(first.id, False)}
            assert (await answers[0].status()).state == "queued"
            with pytest.raises(DuplicateJob):
                await producer.enqueue_many([Reject(n=1), Reject(n=1)])
            later = await producer.enqueue(Reject(n=1), delay=HOUR)
            assert (await later.status()).state == "scheduled"

    asyncio.run(go())


def test_racing_threads_and_processes_win_each_key_exactly_once(
    redis_url: str, prefix: str, ledger_url: str, ledger: Database
) -> None:
    numbers = [str(number) for number in range(6)]
    with Producer("redis://unused", sender=MemoryBroker(), database_url=ledger_url) as producer:
        for number in range(3):  # of these keys there was a job before
            change(ledger, producer.enqueue(Reject(n=number)).id, state=State.SUCCEEDED)
    command = [sys.executable, str(TESTS / "support/unique_jobs.py"), redis_url, ledger_url, prefix, *numbers]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "here\n"
    won = [won for racer in racers for won in json.loads(racer.communicate("go\n")[0])]
    new = [row for row in rows(ledger) if row.state != State.SUCCEEDED]
    assert sorted(won) == [row.id for row in new]
    assert sorted(row.key for row in new) == [f"uniq.reject:n={number}" for number in numbers]
    assert {row.state for row in new} == {State.QUEUED}


def test_jobs_that_enter_the_ledger_otherwise_are_asked_too(producer: Producer, ledger: Database) -> None:
    held = producer.enqueue(Reject(n=1))
    stock = encode(Reject(n=1))
    del stock.headers["penstock"]["key"]  # as of a stock client, which is not asked
    envelopes: list[Envelope] = [encode(Reject(n=1)), encode(Plain(text="x")), encode(Reject(n=2)), stock]
    now = datetime.now(UTC)
    answers = ledger.write(lambda connection: enter(connection, ledger, envelopes, now))
    assert [handle.created for handle in answers] == [False, True, True, True]
    assert answers[0].job_id == held.id
    assert row_of(ledger, envelopes[0].id) is None
    assert row_of(ledger, envelopes[2].id).due_at == now
