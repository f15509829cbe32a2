from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import (
    LEASE,
    Note,
    Pay,
    attempts_of,
    change,
    claim_one,
    claimed,
    end,
    message,
    row_of,
    start_worker,
)

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.claim import Claim, ClaimRequest, Refusal, claim
from penstock.schemas import Outcome, State

DEAD = timedelta(seconds=-1)


def refusal(answer: Claim | Refusal) -> str:
    assert isinstance(answer, Refusal), answer
    return answer.reason


def test_a_new_job_is_claimed_and_shows_as_running(ledger: Database) -> None:
    sent = message(Note(text="über 'quotes'"), key="k", tenant="acme")
    claim = claimed(ledger, sent)
    row = row_of(ledger, sent.id)
    assert (claim.fence, claim.attempt, claim.failures, claim.crashes) == (1, 1, 0, 0)
    assert (row.state, row.worker, row.fence, row.key, row.tenant) == (State.RUNNING, "w1", 1, "k", "acme")
    assert Note.model_validate_json(row.payload) == sent.job


def test_answers_have_the_order_of_the_requests(ledger: Database) -> None:
    old = message(Note())
    end(ledger, claimed(ledger, old), Outcome.SUCCEEDED)
    new = [message(Note(text=str(number))) for number in range(5)]
    requests = [new[0], old, *new[1:], new[0]]
    answers = claim(ledger, [ClaimRequest(request, False, 3) for request in requests], worker="w1")
    assert [answer.message.id for answer in answers] == [request.id for request in requests]
    assert [getattr(answer, "reason", "") for answer in answers] == ["", "ended", "", "", "", "", "duplicate"]


def test_new_jobs_are_claimed_without_a_look(ledger: Database) -> None:
    """On PostgreSQL each BEGIN and COMMIT is a round trip too, which a lone job waits for."""
    statements: list[str] = []

    def keep(*arguments: Any) -> None:
        statements.append(arguments[2])

    requests = [ClaimRequest(message(Note(text=str(number))), False, 3) for number in range(5)]
    sa.event.listen(ledger.engine, "before_cursor_execute", keep)
    try:
        answers = claim(ledger, requests, worker="w1")
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", keep)
    assert all(isinstance(answer, Claim) and answer.unseen for answer in answers)
    assert {statement.split()[0] for statement in statements} - {"BEGIN"} == {"INSERT"}, statements
    assert len(statements) == 1 or ledger.dialect != "postgresql", statements
    again = claim(ledger, requests, worker="w1", asked_before=True)
    assert [getattr(answer, "fence", None) for answer in again] == [2] * 5, "the answer was lost, and they are its own"


def test_a_copy_is_absorbed_while_the_job_runs_and_after_it_ended(ledger: Database) -> None:
    sent = message(Note())
    start_worker(ledger, "w1")
    claim = claimed(ledger, sent)
    assert refusal(claim_one(ledger, sent, worker="w2")) == "duplicate"
    assert refusal(claim_one(ledger, sent, worker="w1")) == "duplicate"
    end(ledger, claim, Outcome.SUCCEEDED)
    assert refusal(claim_one(ledger, sent, worker="w2")) == "ended"
    assert refusal(claim_one(ledger, sent, worker="w2", again=True)) == "ended"


def test_a_copy_is_absorbed_while_the_retry_waits_but_the_retry_itself_is_not(ledger: Database) -> None:
    sent = message(Note())
    end(ledger, claimed(ledger, sent), Outcome.RETRY, error="no", due_at=datetime.now(UTC))
    assert refusal(claim_one(ledger, sent)) == "duplicate"
    # It may arrive before the dispatcher has recorded that it was sent.
    second = claimed(ledger, message(Note(), id=sent.id, attempt=2, fence=1))
    assert (second.attempt, second.fence, second.failures) == (2, 2, 1)


def test_a_worker_restarted_under_its_old_name_claims_its_redelivered_job(ledger: Database) -> None:
    sent = message(Note())
    start_worker(ledger, "w1")
    claimed(ledger, sent)
    again = claimed(ledger, sent, again=True)
    assert (again.fence, again.crashes) == (2, 1)


def test_a_dead_workers_job_is_taken_over_and_the_crash_is_counted(ledger: Database) -> None:
    sent = message(Note())
    start_worker(ledger, "w1", lease=DEAD)
    claimed(ledger, sent)
    claim = claimed(ledger, sent, worker="w2", again=True)
    assert (claim.fence, claim.attempt, claim.failures, claim.crashes) == (2, 1, 0, 1)
    [crashed] = attempts_of(ledger, sent.id)
    assert (crashed.outcome, crashed.worker, crashed.fence) == (Outcome.CRASHED, "w1", 1)


def test_a_job_that_crashes_its_workers_too_often_is_quarantined(ledger: Database) -> None:
    sent = message(Note())
    answers = [claimed(ledger, sent, worker=f"gone-{number}", again=number > 0) for number in range(4)]
    assert [answer.crashes for answer in answers] == [0, 1, 2, 3]
    assert [answer.quarantine for answer in answers] == [False, False, False, True]


def test_a_job_to_be_done_once_is_held_while_its_worker_lives(ledger: Database) -> None:
    sent = message(Pay(amount=5))
    start_worker(ledger, "w1")
    claimed(ledger, sent)
    answer = claim_one(ledger, sent, worker="w2", again=True)
    assert isinstance(answer, Refusal)
    assert answer.reason == "held"
    assert answer.until is not None
    assert answer.until > datetime.now(UTC)
    start_worker(ledger, "w1", lease=DEAD)
    assert claimed(ledger, sent, worker="w2", again=True).crashes == 1


def test_leases_are_right_whatever_the_clocks_of_workers_show(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, hours in enumerate((-1, 0, 1)):
        off = timedelta(hours=hours)

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None, off: timedelta = off) -> datetime:
                return datetime.now(tz) + off

        monkeypatch.setattr(heartbeats, "datetime", Shifted)
        holder, gone = f"holder{number}", f"gone{number}"
        start_worker(ledger, holder)
        start_worker(ledger, gone, lease=DEAD)
        heartbeats.beat(ledger, holder, lease=LEASE)
        for claimers in (-1, 0, 1):
            now = datetime.now(UTC) + timedelta(hours=claimers)
            held, left = message(Pay(amount=5)), message(Pay(amount=6))
            claimed(ledger, held, worker=holder)
            claimed(ledger, left, worker=gone)
            [copy] = claim(ledger, [ClaimRequest(held, False, 3)], worker="w2", now=now)
            assert refusal(copy) == "duplicate"
            again, claims = claim(
                ledger, [ClaimRequest(held, True, 3), ClaimRequest(left, True, 3)], worker="w2", now=now
            )
            assert refusal(again) == "held"
            assert isinstance(again, Refusal)
            assert again.until is not None
            assert timedelta() < again.until - now <= LEASE
            assert isinstance(claims, Claim)


def test_a_cancelled_job_is_not_run(ledger: Database) -> None:
    waiting = message(Note())
    request_cancel(ledger, waiting.id, kind="ledger.note")
    assert refusal(claim_one(ledger, waiting)) == "cancelled"
    job = message(Note())
    end(ledger, claimed(ledger, job), Outcome.RETRY, due_at=datetime.now(UTC))
    change(ledger, job.id, cancel_requested=True)
    assert refusal(claim_one(ledger, message(Note(), id=job.id, attempt=2, fence=1))) == "cancelled"
