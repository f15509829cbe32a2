"""Jobs that a broker has lost wait again, and a copy of one that it has not lost is harmless."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.ledgers import (
    Note,
    Pay,
    Ring,
    Tick,
    attempts_of,
    change,
    claim_one,
    claimed,
    end,
    message,
    row_of,
    start_worker,
)

from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions import lost as resending
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.claim import Claim
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import Envelope, Message, decode, encode
from penstock.workers.dispatcher import due_jobs

LANE = ("notes", "normal")
MINUTE = timedelta(minutes=1)


def sent(ledger: Database, *jobs: Job, broker: MemoryBroker | None = None) -> list[Message]:
    """Jobs that a dispatcher has sent, as their workers get them."""
    broker = broker or MemoryBroker()
    due.schedule(ledger, [encode(job, due_at=datetime.now(UTC)) for job in jobs])
    while due_jobs.send_due(ledger, broker):
        pass
    return [decode(envelope) for lane in broker.lanes.values() for envelope, _ in lane]


def put_back_all(ledger: Database) -> int:
    return resending.put_back(ledger, resending.clock(ledger) + MINUTE)


def test_jobs_sent_before_the_loss_are_sent_again_and_nothing_else(ledger: Database) -> None:
    old, new, running, ended = sent(ledger, *(Note(text=str(number)) for number in range(4)))
    claimed(ledger, running)
    end(ledger, claimed(ledger, ended), Outcome.SUCCEEDED)
    change(ledger, old.id, due_at=resending.clock(ledger) - MINUTE)
    assert resending.put_back(ledger, resending.clock(ledger) - MINUTE / 2) == 1
    assert (row_of(ledger, old.id).state, row_of(ledger, new.id).state) == (State.SCHEDULED, State.QUEUED)
    broker = MemoryBroker()
    assert due_jobs.send_due(ledger, broker) == 1
    [again] = [decode(envelope) for lane in broker.lanes.values() for envelope, _ in lane]
    assert (again.id, again.attempt, again.fence) == (old.id, old.attempt, old.fence)
    assert resending.put_back(ledger, resending.clock(ledger) - MINUTE / 2) == 0, "it was sent just now"


def test_jobs_of_other_lanes_are_not_sent_again(ledger: Database) -> None:
    [own] = sent(ledger, Note())
    high = encode(Note(), due_at=datetime.now(UTC), priority="high")
    due.schedule(ledger, [high])
    due_jobs.send_due(ledger, MemoryBroker())
    assert resending.put_back(ledger, resending.clock(ledger) + MINUTE, LANE) == 1
    assert (row_of(ledger, own.id).state, row_of(ledger, high.id).state) == (State.SCHEDULED, State.QUEUED)


@pytest.mark.parametrize("job", [Note(), Pay(amount=1), Ring(number="1")], ids=lambda job: job.kind().delivery)
def test_copies_of_a_job_run_once(ledger: Database, job: Job) -> None:
    start_worker(ledger, "w1")
    start_worker(ledger, "w2")
    [first] = sent(ledger, job)
    assert put_back_all(ledger) == 1
    broker = MemoryBroker()
    due_jobs.send_due(ledger, broker)
    [second] = [decode(envelope) for lane in broker.lanes.values() for envelope, _ in lane]
    claim = claimed(ledger, second, worker="w1")
    refused = claim_one(ledger, first, worker="w2")
    assert getattr(refused, "reason", None) == "duplicate"
    assert end(ledger, claim, Outcome.SUCCEEDED)
    refused = claim_one(ledger, first, worker="w2", again=True)
    assert getattr(refused, "reason", None) == "ended"


def test_a_copy_that_is_claimed_before_it_is_sent_again_stays_claimed(ledger: Database) -> None:
    [first] = sent(ledger, Pay(amount=1))
    put_back_all(ledger)
    claim = claimed(ledger, first)
    assert due_jobs.send_due(ledger, MemoryBroker()) == 0
    assert end(ledger, claim, Outcome.SUCCEEDED)


def test_a_job_that_a_stopping_worker_gave_back_is_sent_again_too(ledger: Database) -> None:
    [first] = sent(ledger, Note())
    end(ledger, claimed(ledger, first), Outcome.INTERRUPTED)
    assert put_back_all(ledger) == 1


def test_a_retry_of_an_untracked_kind_ends_on_record(ledger: Database) -> None:
    tick = message(Tick())
    end(ledger, Claim(tick, 0, 1, 0, 0, datetime.now(UTC), tracked=False), Outcome.RETRY, due_at=datetime.now(UTC))
    broker = MemoryBroker()
    due_jobs.send_due(ledger, broker)
    assert put_back_all(ledger) == 1
    due_jobs.send_due(ledger, broker)
    first, second = [decode(envelope) for lane in broker.lanes.values() for envelope, _ in lane]
    assert end(ledger, claimed(ledger, first), Outcome.SUCCEEDED)
    assert getattr(claim_one(ledger, second), "reason", None) == "ended"


def test_a_kind_unknown_to_the_dispatcher_is_sent_so_that_its_worker_claims_it(ledger: Database) -> None:
    """The worker may know it as untracked: unclaimed, it would stay queued for ever, and be missed again and again."""
    broker = MemoryBroker()
    headers = {"task": "not.known.here", "id": "u1", "penstock": {"version": 1}}
    due.schedule(ledger, [Envelope("notes", "normal", headers, b"[[], {}, null]")])
    due_jobs.send_due(ledger, broker)
    [(out, _)] = broker.lanes["notes", "normal"]
    assert out.headers["penstock"]["fence"] == 1


@pytest.mark.parametrize("job", [Note(), Pay(amount=1)], ids=lambda job: job.kind().delivery)
def test_the_job_of_a_dead_worker_is_put_back_as_a_crash(ledger: Database, job: Job) -> None:
    start_worker(ledger, "alive")
    start_worker(ledger, "dead", lease=-MINUTE)
    [lost, held] = sent(ledger, job, job)
    late = claimed(ledger, lost, worker="dead")
    claimed(ledger, held, worker="alive")
    assert resending.put_back_running(ledger, 2 * MINUTE, LANE) == 0, "not silent for so long"
    assert resending.put_back_running(ledger, MINUTE / 2, LANE) == 1
    row = row_of(ledger, lost.id)
    assert (row.state, row.crashes) == (State.SCHEDULED, 1)
    assert [attempt.outcome for attempt in attempts_of(ledger, lost.id)] == [Outcome.CRASHED]
    assert not end(ledger, late, Outcome.SUCCEEDED, worker="dead"), "it only slept, and its fence is lost"
    assert row_of(ledger, held.id).state == State.RUNNING


def test_a_job_that_a_dead_worker_should_cancel_is_cancelled(ledger: Database) -> None:
    start_worker(ledger, "dead", lease=-MINUTE)
    [lost] = sent(ledger, Note())
    claimed(ledger, lost, worker="dead")
    assert request_cancel(ledger, lost.id) == State.RUNNING
    assert resending.put_back_running(ledger, timedelta(), LANE) == 1
    row = row_of(ledger, lost.id)
    assert (row.state, row.due_at, row.cancel_requested) == (State.CANCELLED, None, False)
    assert [attempt.outcome for attempt in attempts_of(ledger, lost.id)] == [Outcome.CRASHED]


def test_an_at_most_once_job_is_not_put_back_once_it_began(ledger: Database) -> None:
    start_worker(ledger, "dead", lease=-MINUTE)
    [lost] = sent(ledger, Ring(number="1"))
    change(ledger, lost.id, delivery="at_least_once")  # the guess of a dispatcher that does not know the kind
    claimed(ledger, lost, worker="dead")
    assert resending.put_back_running(ledger, timedelta(), LANE) == 0


def test_lanes_are_suspect_that_a_living_worker_consumes_and_that_miss_jobs(ledger: Database) -> None:
    def suspects() -> set[resending.Lane]:
        return resending.suspects(ledger, MINUTE, MINUTE)

    start_worker(ledger, "stopped", lease=-MINUTE)
    fresh, old = sent(ledger, Note(), Note())
    change(ledger, old.id, due_at=resending.clock(ledger) - 2 * MINUTE)
    assert suspects() == set(), "no worker consumes the queue"
    start_worker(ledger, "w1")
    assert suspects() == {LANE}
    claimed(ledger, old)
    assert suspects() == set(), "the other was sent just now"
    start_worker(ledger, "dead", lease=-2 * MINUTE)
    claimed(ledger, fresh, worker="dead")
    assert suspects() == {LANE}
