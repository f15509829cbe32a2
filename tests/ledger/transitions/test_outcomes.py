from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from support.ledgers import Note, Tick, attempt_outcome, attempts_of, claimed, end, letter_of, message, row_of

from penstock.ledger.queries.status import Progress, read_status
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.due import envelope_of
from penstock.ledger.transitions.outcome import record
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import decode, encode


def test_success_is_recorded_with_result_and_progress(ledger: Database) -> None:
    sent = message(Note())
    claim = claimed(ledger, sent)
    assert end(ledger, claim, Outcome.SUCCEEDED, result=json.dumps({"n": 1}), progress=(3, 4, "x" * 300))
    status = read_status(ledger, sent.id)
    assert status is not None
    assert (status.state, status.result, status.attempt) == (State.SUCCEEDED, {"n": 1}, 1)
    mark = "… [cut: 300 characters]"
    assert status.progress == Progress(3, 4, "x" * (255 - len(mark)) + mark)
    [attempt] = attempts_of(ledger, sent.id)
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, Outcome.SUCCEEDED, "w1")


def test_a_worker_that_lost_its_claim_records_nothing(ledger: Database) -> None:
    sent = message(Note())
    lost = claimed(ledger, sent, worker="paused")
    claim = claimed(ledger, sent, worker="w2", again=True)
    late = attempt_outcome(lost, Outcome.SUCCEEDED, result="1", outgoing=[encode(Note(text="never"))])
    assert record(ledger, [late], worker="paused") == [False]
    assert row_of(ledger, sent.id).state == State.RUNNING
    assert row_of(ledger, late.outgoing[0].id) is None
    assert end(ledger, claim, Outcome.SUCCEEDED, worker="w2", result="2")
    assert not end(ledger, claim, Outcome.SUCCEEDED, worker="w2", result="3")
    assert row_of(ledger, sent.id).result == "2"


def test_a_retry_costs_an_attempt_and_a_snooze_and_an_interruption_do_not(ledger: Database) -> None:
    due = datetime.now(UTC) + timedelta(minutes=1)
    rows = []
    for outcome in (Outcome.RETRY, Outcome.SNOOZED, Outcome.INTERRUPTED):
        sent = message(Note())
        end(ledger, claimed(ledger, sent), outcome, due_at=None if outcome == Outcome.INTERRUPTED else due, error="why")
        rows.append(row_of(ledger, sent.id))
    assert [row.state for row in rows] == [State.RETRYING, State.SCHEDULED, State.QUEUED]
    assert [row.failures for row in rows] == [1, 0, 0]
    assert [row.attempt for row in rows] == [1, 0, 0]
    assert [row.due_at for row in rows] == [due, due, rows[2].finished_at], "of the last, when it was given back"
    assert {row.worker for row in rows} == {"w1"}, "who ran it last"


def test_the_crash_of_a_childs_process_counts_as_a_crash_and_not_as_a_failure(ledger: Database) -> None:
    sent, crash = message(Note()), "its child process 7 was killed by SIGSEGV"
    delay = timedelta()
    assert end(ledger, claimed(ledger, sent), Outcome.CRASHED, error=crash, delay=delay, crashed=True)
    row = row_of(ledger, sent.id)
    assert (row.state, row.crashes, row.failures, row.error) == (State.SCHEDULED, 1, 0, crash)
    claim = claimed(ledger, decode(envelope_of(row)))
    assert (claim.attempt, claim.crashes, claim.quarantine) == (1, 1, False)
    assert end(ledger, claim, Outcome.DEAD, error=crash, reason="crashed", crashed=True)
    row = row_of(ledger, sent.id)
    assert (row.state, row.crashes, row.failures) == (State.DEAD, 2, 0)
    assert letter_of(ledger, sent.id).reason == "crashed"
    assert [attempt.outcome for attempt in attempts_of(ledger, sent.id)] == [Outcome.CRASHED, Outcome.CRASHED]


def test_an_untracked_job_that_crashed_in_a_child_is_on_record_from_then_on(ledger: Database) -> None:
    claim = Claim(message(Tick()), 0, 1, 0, 1, datetime.now(UTC), tracked=False)
    assert end(ledger, claim, Outcome.CRASHED, error="died", delay=timedelta(), crashed=True)
    row = row_of(ledger, claim.message.id)
    assert (row.state, row.crashes, row.failures) == (State.SCHEDULED, 2, 0)
    again = claimed(ledger, decode(envelope_of(row)))
    assert (again.crashes, again.quarantine) == (2, False)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Outcome.DISCARDED, State.DISCARDED), (Outcome.CANCELLED, State.CANCELLED), (Outcome.DEAD, State.DEAD)],
)
def test_an_outcome_is_recorded_and_only_death_leaves_a_dead_letter(
    ledger: Database, outcome: Outcome, state: State
) -> None:
    sent = message(Note())
    end(ledger, claimed(ledger, sent), outcome, error="ValueError: no", traceback="Traceback …", reason="failed")
    row, letter = row_of(ledger, sent.id), letter_of(ledger, sent.id)
    assert (row.state, row.error, row.due_at) == (state, "ValueError: no", None)
    assert (letter is not None) == (outcome == Outcome.DEAD)
    if letter is not None:
        assert (letter.reason, letter.detail, letter.raw) == ("failed", "ValueError: no", None)


def test_an_asked_cancellation_is_forgotten_when_the_attempt_ends(ledger: Database) -> None:
    sent = message(Note())
    claim = claimed(ledger, sent)
    assert request_cancel(ledger, sent.id) == State.RUNNING
    assert row_of(ledger, sent.id).cancel_requested
    end(ledger, claim, Outcome.CANCELLED)
    assert not row_of(ledger, sent.id).cancel_requested


def test_jobs_enqueued_by_a_handler_are_written_with_its_success(ledger: Database) -> None:
    sent, now = message(Note()), datetime.now(UTC)
    later = encode(Note(text="later"), due_at=now + timedelta(hours=1))
    at_once = encode(Note(text="next"), priority="high")
    end(ledger, claimed(ledger, sent), Outcome.SUCCEEDED, outgoing=[later, at_once])
    rows = [row_of(ledger, later.id), row_of(ledger, at_once.id)]
    assert [(row.state, row.queue, row.priority) for row in rows] == [
        (State.SCHEDULED, "notes", "normal"),
        (State.SCHEDULED, "notes", "high"),
    ]
    assert rows[0].due_at > now + timedelta(minutes=59)
    assert rows[1].due_at <= datetime.now(UTC)


def test_an_untracked_kind_keeps_only_failures(ledger: Database) -> None:
    good, bad = message(Tick()), message(Tick())

    def untracked(sent: object) -> Claim:
        return Claim(sent, 0, 1, 0, 0, datetime.now(UTC), tracked=False)  # type: ignore[arg-type]

    due = datetime.now(UTC)
    kept = record(
        ledger,
        [
            attempt_outcome(untracked(good), Outcome.SUCCEEDED),
            attempt_outcome(untracked(bad), Outcome.RETRY, error="no", due_at=due),
        ],
        worker="w1",
    )
    assert kept == [True, True]
    assert row_of(ledger, good.id) is None
    row = row_of(ledger, bad.id)
    assert (row.state, row.failures, row.fence) == (State.RETRYING, 1, 1)
    # Its retry carries a fence, so from now on the ledger is asked.
    second = claimed(ledger, message(Tick(), id=bad.id, attempt=2, fence=row.fence))
    assert (second.attempt, second.fence) == (2, 2)
    assert end(ledger, second, Outcome.SUCCEEDED)
    assert row_of(ledger, bad.id).state == State.SUCCEEDED
