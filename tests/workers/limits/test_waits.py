"""Jobs that wait for a limit: recorded in the transaction of their outcome, woken in order, and never a ghost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from support.ledgers import Note, attempts_of, change, claimed, message, row_of

from penstock.ledger.retention.pruning import delete_jobs
from penstock.ledger.rows.waits import limit_waits as waits
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, limit_waits
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import decode
from penstock.workers.dispatcher import due_jobs

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def hold_back(ledger: Database, claim: Claim, slot: str = "one:") -> bool:
    later = datetime.now(UTC) + HOUR
    outcome = AttemptOutcome(claim, Outcome.SNOOZED, State.SCHEDULED, datetime.now(UTC), due_at=later, waits_for=slot)
    [kept] = record(ledger, [outcome], worker="w1")
    return kept


def waiting(ledger: Database, number: int, slot: str = "one:") -> str:
    """A job that waits, the `number`-th by its age."""
    sent = message(Note(), sent_at=START + timedelta(seconds=number))
    assert hold_back(ledger, claimed(ledger, sent), slot)
    return sent.id


def count(ledger: Database) -> int:
    rows = sa.select(sa.func.count()).select_from(limit_waits)
    return int(ledger.read(lambda connection: connection.execute(rows).scalar_one()))


def test_being_held_back_costs_no_attempt_and_leaves_no_trace_but_where_it_waits(ledger: Database) -> None:
    job_id = waiting(ledger, 1)
    row = row_of(ledger, job_id)
    assert (row.state, row.attempt, row.failures, row.crashes) == (State.SCHEDULED, 0, 0, 0)
    assert row.due_at > datetime.now(UTC) + HOUR / 2
    assert attempts_of(ledger, job_id) == []
    assert waits.slots(ledger) == ["one:"]


def test_the_oldest_is_woken_first_and_sent_at_once(ledger: Database) -> None:
    third, first, second = (waiting(ledger, number) for number in (3, 1, 2))
    other = waiting(ledger, 0, "another:")
    turn = waits.turn(ledger, "one:", 2)
    assert (turn.job_ids, turn.gone, turn.more) == ([first, second], [], True)
    waits.wake(ledger, turn)
    broker = MemoryBroker()
    assert due_jobs.send_due(ledger, broker) == 2
    assert {envelope.id for envelope in broker.sent} == {first, second}
    assert waits.turn(ledger, "one:", 2).job_ids == [third]
    assert waits.counts(ledger) == {"one:": 1, "another:": 1}
    assert waits.turn(ledger, "another:", 1) == waits.Turn([other], [], more=False)


def test_a_job_held_back_again_keeps_its_position(ledger: Database) -> None:
    first, second = waiting(ledger, 1), waiting(ledger, 2)
    waits.wake(ledger, waits.turn(ledger, "one:", 1))
    broker = MemoryBroker()
    due_jobs.send_due(ledger, broker)
    assert hold_back(ledger, claimed(ledger, decode(broker.sent[0])))
    assert waits.turn(ledger, "one:", 2).job_ids == [first, second]


def test_waking_twice_is_as_waking_once(ledger: Database) -> None:
    waiting(ledger, 1)
    turn = waits.turn(ledger, "one:", 1)
    waits.wake(ledger, turn)
    broker = MemoryBroker()
    assert due_jobs.send_due(ledger, broker) == 1
    waits.wake(ledger, turn)
    assert due_jobs.send_due(ledger, broker) == 0
    assert count(ledger) == 0


def test_cancelled_rescheduled_and_erased_jobs_have_no_turn(ledger: Database) -> None:
    cancelled, rescheduled, erased, left = (waiting(ledger, number) for number in range(4))
    request_cancel(ledger, cancelled)
    change(ledger, rescheduled, due_at=START + 9000 * HOUR)
    ledger.write(lambda connection: connection.execute(sa.delete(jobs).where(jobs.c.id == erased)))
    turn = waits.turn(ledger, "one:", 1)
    assert turn.job_ids == [left]
    assert set(turn.gone) == {cancelled, rescheduled, erased}
    waits.wake(ledger, turn)
    assert count(ledger) == 0
    assert row_of(ledger, cancelled).state == State.CANCELLED
    assert row_of(ledger, rescheduled).due_at == START + 9000 * HOUR


def test_a_crowd_of_cancelled_ones_is_passed_over_in_bulk(ledger: Database) -> None:
    for number in range(20):
        request_cancel(ledger, waiting(ledger, number))
    left = waiting(ledger, 21)
    turn = waits.turn(ledger, "one:", 1)
    assert (turn.job_ids, len(turn.gone), turn.more) == ([left], 20, False)


def test_a_late_hold_back_is_not_recorded(ledger: Database) -> None:
    sent = message(Note())
    late = claimed(ledger, sent)
    change(ledger, sent.id, fence=late.fence + 1)
    assert not hold_back(ledger, late)
    assert count(ledger) == 0


def test_deleting_jobs_deletes_where_they_wait(ledger: Database) -> None:
    job_id = waiting(ledger, 1)
    ledger.write(lambda connection: delete_jobs(connection, ledger, [job_id]))
    assert count(ledger) == 0


def test_the_number_of_jobs_waiting_before_a_job(ledger: Database) -> None:
    ids = [waiting(ledger, number) for number in range(4)]
    request_cancel(ledger, ids[1])

    def before(job_id: str, most: int = 100) -> tuple[str, int] | None:
        return ledger.read(lambda connection: waits.waiting(connection, job_id, most))

    assert before(ids[0]) == ("one:", 0)
    assert before(ids[3]) == ("one:", 2)
    assert before(ids[3], 1) == ("one:", 1)
    assert before(ids[1]) is None
