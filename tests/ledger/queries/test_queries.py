from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.ledgers import Note, claimed, end, letter_of, message, row_of, stock_envelope

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.queries import jobs
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.replay import retry
from penstock.schemas import Job, Outcome, State, registry


def test_a_job_is_shown_with_its_attempts(ledger: Database) -> None:
    sent = message(Note())
    end(ledger, claimed(ledger, sent), Outcome.RETRY, error="first", due_at=datetime.now(UTC))
    end(ledger, claimed(ledger, message(Note(), id=sent.id, attempt=2, fence=1)), Outcome.SUCCEEDED)
    row, attempts = jobs.show(ledger, sent.id)
    assert row.state == State.SUCCEEDED
    assert [(attempt.number, attempt.outcome, attempt.error) for attempt in attempts] == [
        (1, "retry", "first"),
        (2, "succeeded", None),
    ]
    with pytest.raises(JobNotFound):
        jobs.show(ledger, "none")


def test_counts_are_by_queue_and_state(ledger: Database) -> None:
    claimed(ledger, message(Note()))
    end(ledger, claimed(ledger, message(Note())), Outcome.DEAD)
    assert jobs.counts(ledger, (State.RUNNING, State.DEAD, State.QUEUED)) == {"notes": {"running": 1, "dead": 1}}


@pytest.mark.parametrize("outcome", [Outcome.DEAD, Outcome.DISCARDED, Outcome.CANCELLED])
def test_an_ended_job_is_tried_again(ledger: Database, outcome: Outcome) -> None:
    sent = message(Note())
    end(ledger, claimed(ledger, sent), outcome, error="no")
    retry(ledger, sent.id, actor="ada")
    row = row_of(ledger, sent.id)
    assert (row.state, row.failures, row.finished_at) == (State.SCHEDULED, 0, None)
    assert row.due_at <= datetime.now(UTC)
    if outcome == Outcome.DEAD:
        assert letter_of(ledger, sent.id).replayed_at is not None


def test_a_succeeded_job_is_retried_only_by_force_and_a_running_one_never(ledger: Database) -> None:
    sent = message(Note())
    claim = claimed(ledger, sent)
    for force in (False, True):
        with pytest.raises(InvalidState, match="running"):
            retry(ledger, sent.id, actor="ada", force=force)
    end(ledger, claim, Outcome.SUCCEEDED, result="1")
    with pytest.raises(InvalidState, match="--force"):
        retry(ledger, sent.id, actor="ada")
    retry(ledger, sent.id, actor="ada", force=True)
    assert (row_of(ledger, sent.id).state, row_of(ledger, sent.id).result) == (State.SCHEDULED, None)
    with pytest.raises(JobNotFound):
        retry(ledger, "none", actor="ada")


def test_trying_a_job_again_whose_message_was_never_read_reads_it_first(ledger: Database) -> None:
    bury_message(ledger, stock_envelope("ledger.soon", {"a": 1}, queue="x", id="s"), b"", "unknown_kind", "no")
    with pytest.raises(InvalidState, match="unknown_kind"):
        retry(ledger, "s", actor="ada")

    class Soon(Job, kind="ledger.soon", queue="soons"):
        a: int

    try:
        retry(ledger, "s", actor="ada")
    finally:
        registry.discard(Soon.kind())
    assert row_of(ledger, "s").queue == "soons"


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_ended_cannot_be(ledger: Database) -> None:
    sent = message(Note())
    end(ledger, claimed(ledger, sent), Outcome.RETRY, due_at=datetime.now(UTC))
    assert request_cancel(ledger, sent.id) == State.CANCELLED
    with pytest.raises(InvalidState):
        request_cancel(ledger, sent.id)
    with pytest.raises(JobNotFound):
        request_cancel(ledger, "none")
