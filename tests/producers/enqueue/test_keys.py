"""Cancelling and rescheduling, by id and by key, whichever processes are up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import (
    LEASE,
    attempts_of,
    change,
    claim_one,
    claimed,
    end,
    row_of,
    start_worker,
)
from support.unique_jobs import Light, Plain, Reject, Replace

from penstock.config.errors import InvalidJob, InvalidState, JobNotFound
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions import due
from penstock.ledger.transitions.cancel import cancel_key, request_cancel
from penstock.ledger.transitions.claim import Claim, ClaimRequest, Refusal, asks_of_keys, claim, without_cancelled
from penstock.ledger.transitions.replay import retry
from penstock.producers import AsyncProducer, Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import decode
from penstock.workers.dispatcher import due_jobs

HOUR = timedelta(hours=1)


def deliver(ledger: Database, sender: MemoryBroker, number: int) -> Claim | Refusal:
    """A worker's claim of a sent message, as the executor asks for it."""
    answers = claim(ledger, [ClaimRequest(decode(sender.sent[number]), False, 3)], worker="w1")
    if asks_of_keys(answers):
        answers = without_cancelled(ledger, answers)
    return answers[0]


def is_cancelled(answer: Claim | Refusal) -> bool:
    return isinstance(answer, Refusal) and answer.reason == "cancelled"


def test_a_key_is_cancelled_wherever_its_jobs_are(producer: Producer, sender: MemoryBroker, ledger: Database) -> None:
    start_worker(ledger, "w1", lease=LEASE)
    running = producer.enqueue(Plain(text="running"), key="k")
    assert isinstance(deliver(ledger, sender, 0), Claim)
    queued = producer.enqueue(Replace(n=1), key="k")
    delayed = producer.enqueue(Reject(n=1), key="k", delay=HOUR)
    ended = producer.enqueue(Plain(text="ended"), key="k")
    end(ledger, claimed(ledger, decode(sender.sent[2])), Outcome.SUCCEEDED)
    other = producer.enqueue(Reject(n=2), key="K", delay=HOUR)
    assert producer.cancel(key="k") == sorted([running.id, queued.id, delayed.id])
    states = [handle.status().state for handle in (running, queued, delayed, ended, other)]
    assert states == ["running", "cancelled", "cancelled", "succeeded", "scheduled"]
    assert row_of(ledger, running.id).cancel_requested
    assert is_cancelled(deliver(ledger, sender, 1))
    assert producer.cancel(key="nobody's") == []


def test_cancelling_by_key_can_be_limited_to_a_kind_and_a_tenant(producer: Producer, ledger: Database) -> None:
    own = producer.enqueue(Reject(n=1), key="k", tenant="a", delay=HOUR)
    tenants = producer.enqueue(Reject(n=1), key="k", tenant="b", delay=HOUR)
    kinds = producer.enqueue(Replace(n=1), key="k", tenant="a", delay=HOUR)
    assert producer.cancel(key="k", kind="uniq.reject", tenant="a") == [own.id]
    assert producer.cancel(key="k", tenant="a") == [kinds.id]
    assert tenants.status().state == "scheduled"


def test_an_unrecorded_job_is_cancelled_by_its_key_when_a_worker_gets_it(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    """No worker and no dispatcher is up: the broker alone has these."""
    before = producer.enqueue(Plain(), key="k", tenant="a")
    delayed = producer.enqueue(Plain(), key="k", delay=HOUR)
    other = producer.enqueue(Plain(), key="other")
    assert producer.cancel(key="k", kind="uniq.reject") == []
    assert producer.cancel(key="k", tenant="b") == []
    assert isinstance(deliver(ledger, sender, 2), Claim)
    assert producer.cancel(key="k") == []
    after = producer.enqueue(Plain(), key="k")
    assert is_cancelled(deliver(ledger, sender, 0))
    due.schedule(ledger, [sender.sent[1]])
    assert isinstance(deliver(ledger, sender, 3), Claim)
    states = [handle.status().state for handle in (before, delayed, other, after)]
    assert states == ["cancelled", "cancelled", "running", "running"]
    # A person may want it after all.
    retry(ledger, before.id, actor="ada")
    assert due_jobs.send_due(ledger, sender) == 1
    assert isinstance(deliver(ledger, sender, 4), Claim)


def test_a_cancelled_key_is_found_however_many_jobs_have_it(producer: Producer, ledger: Database) -> None:
    first = producer.enqueue(Reject(n=1), key="k", delay=HOUR)
    row = row_of(ledger, first.id)._asdict()
    copies = [{**row, "id": f"copy-{number:04}"} for number in range(1201)]
    ledger.write(lambda connection: connection.execute(sa.insert(jobs), copies))
    assert cancel_key(ledger, "k") == sorted([first.id, *(copy["id"] for copy in copies)])
    waiting = sa.select(sa.func.count()).where(jobs.c.state != State.CANCELLED)
    assert ledger.read(lambda connection: connection.execute(waiting).scalar()) == 0


def test_a_job_of_a_kind_that_is_not_tracked_cannot_be_cancelled_for_certain_and_says_so(
    producer: Producer, ledger: Database
) -> None:
    handle = producer.enqueue(Light())
    with pytest.raises(InvalidState, match="track=False"):
        handle.cancel()
    assert row_of(ledger, handle.id) is None


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.SNOOZED, Outcome.INTERRUPTED])
def test_a_job_that_goes_on_before_its_worker_heard_of_the_cancellation_is_cancelled(
    producer: Producer, sender: MemoryBroker, ledger: Database, outcome: Outcome
) -> None:
    handle = producer.enqueue(Plain())
    claim = claimed(ledger, decode(sender.sent[0]))
    assert handle.cancel() == "running"
    assert end(ledger, claim, outcome, due_at=datetime.now(UTC))
    assert handle.status().state == "cancelled"
    assert due_jobs.send_due(ledger, sender) == 0
    assert isinstance(claim_one(ledger, decode(sender.sent[0]), again=True), Refusal)


def test_a_job_whose_worker_died_before_it_heard_of_the_cancellation_does_not_run_again(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    start_worker(ledger, "w1", lease=timedelta(seconds=-1))
    handle = producer.enqueue(Plain())
    late = claimed(ledger, decode(sender.sent[0]))
    request_cancel(ledger, handle.id)
    answer = claim_one(ledger, decode(sender.sent[0]), worker="w2", again=True)
    assert is_cancelled(answer)
    assert handle.status().state == "cancelled"
    assert not end(ledger, late, Outcome.SUCCEEDED)
    assert [attempt.outcome for attempt in attempts_of(ledger, handle.id)] == [Outcome.CRASHED]


def test_a_waiting_job_is_rescheduled_by_its_handle_and_by_its_key(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    first = producer.enqueue(Reject(n=1), key="k", delay=HOUR)
    second = producer.enqueue(Replace(n=1), key="k", tenant="t", delay=HOUR)
    later = datetime.now(UTC) + 5 * HOUR
    first.reschedule(run_at=later)
    assert row_of(ledger, first.id).due_at == later
    assert producer.reschedule(key="k", delay=2 * HOUR, kind="uniq.reject") == [first.id]
    assert row_of(ledger, first.id).due_at < later
    assert producer.reschedule(key="k", run_at=later) == [first.id, second.id]
    assert producer.reschedule(key="k", delay=0, tenant="t") == [second.id]
    assert due_jobs.send_due(ledger, sender) == 1
    assert sender.sent[0].id == second.id
    assert isinstance(deliver(ledger, sender, 0), Claim)


def test_a_retry_is_rescheduled_too(producer: Producer, sender: MemoryBroker, ledger: Database) -> None:
    handle = producer.enqueue(Plain(), key="k")
    end(ledger, claimed(ledger, decode(sender.sent[0])), Outcome.RETRY, due_at=datetime.now(UTC) + HOUR)
    assert producer.reschedule(key="k", delay=0) == [handle.id]
    assert due_jobs.send_due(ledger, sender) == 1
    assert claimed(ledger, decode(sender.sent[1])).attempt == 2


def test_a_job_that_is_not_delayed_cannot_be_rescheduled(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    later = datetime.now(UTC) + HOUR
    queued = producer.enqueue(Reject(n=1), key="k")
    with pytest.raises(InvalidState, match="is queued"):
        queued.reschedule(run_at=later)
    claimed(ledger, decode(sender.sent[0]))
    for call in (lambda: queued.reschedule(run_at=later), lambda: producer.reschedule(key="k", run_at=later)):
        with pytest.raises(InvalidState, match="is running"):
            call()
    brief = producer.enqueue(Reject(n=2), delay=60, expires_in=HOUR)
    with pytest.raises(InvalidState, match="expires"):
        brief.reschedule(run_at=later + HOUR)
    with pytest.raises(JobNotFound):
        producer.handle("nobody").reschedule(delay=1)
    with pytest.raises(JobNotFound, match="'none'"):
        producer.reschedule(key="none", delay=1)
    bad: list[dict[str, Any]] = [{}, {"delay": 1, "run_at": later}, {"run_at": datetime(2030, 1, 1)}]
    for options in bad:
        with pytest.raises(InvalidJob):
            brief.reschedule(**options)


def test_a_copy_that_is_being_sent_while_its_job_is_rescheduled_does_not_run(
    producer: Producer, ledger: Database
) -> None:
    class During(MemoryBroker):
        def send(self, envelopes: Any) -> None:
            super().send(envelopes)
            handle.reschedule(delay=HOUR)

    broker = During()
    handle = producer.enqueue(Reject(n=1), delay=HOUR)
    change(ledger, handle.id, due_at=datetime.now(UTC))
    due_jobs.send_due(ledger, broker)
    assert isinstance(claim_one(ledger, decode(broker.sent[0])), Refusal)
    assert handle.status().state == "scheduled"


def test_an_async_producer_cancels_and_reschedules(redis_url: str, prefix: str, ledger_url: str) -> None:
    async def go() -> None:
        async with AsyncProducer(redis_url, prefix=prefix, database_url=ledger_url) as producer:
            handle = await producer.enqueue(Reject(n=1), key="k", delay=HOUR)
            assert await producer.reschedule(key="k", delay=2 * HOUR) == [handle.id]
            await handle.reschedule(run_at=datetime.now(UTC) + 3 * HOUR)
            due_at = (await handle.status()).due_at
            assert due_at is not None
            assert due_at > datetime.now(UTC) + 2 * HOUR
            assert await producer.cancel(key="k") == [handle.id]
            assert (await handle.status()).state == "cancelled"

    asyncio.run(go())


def test_a_key_is_looked_up_in_an_index(ledger: Database) -> None:
    names = {
        "sqlite": "EXPLAIN QUERY PLAN SELECT id FROM penstock_jobs WHERE key = 'k'",
        "postgresql": "EXPLAIN SELECT id FROM penstock_jobs WHERE key = 'k'",
    }
    query = names.get(ledger.dialect, "EXPLAIN SELECT id FROM penstock_jobs WHERE `key` = 'k'")

    def plan(connection: sa.Connection) -> str:
        if ledger.dialect == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # the table is empty
        return str(connection.exec_driver_sql(query).all())

    assert "ix_penstock_jobs_key" in ledger.write(plan)


def test_an_overdue_job_is_cancelled_in_the_transaction_that_records_it(
    producer: Producer, sender: MemoryBroker, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage another dispatcher sends it at once, and a job that is not tracked has no claim to be refused."""
    job = producer.enqueue(Light(), key="k", delay=0.01)
    assert producer.cancel(key="k") == []

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(due, "cancel_unseen", crash)
    with pytest.raises(KeyboardInterrupt):
        due.schedule(ledger, sender.sent)
    assert row_of(ledger, job.id).state == State.CANCELLED
    assert row_of(ledger, job.id).due_at is None
