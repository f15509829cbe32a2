"""Messages with the id of another job: that job stays exactly as it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.ledgers import (
    Login,
    Note,
    Pay,
    Tick,
    attempt_outcome,
    change,
    claim_one,
    claimed,
    end,
    letters,
    message,
    row_of,
    start_worker,
)

from penstock.ledger.queries.selection import Selection
from penstock.ledger.rows.jobs import ID_TAKEN
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions.abandoned import bury_dropped
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.cancel import cancel_key, request_cancel
from penstock.ledger.transitions.claim import Claim, Refusal
from penstock.ledger.transitions.outcome import record
from penstock.ledger.transitions.replay import replay
from penstock.schemas import Job, Outcome, State
from penstock.schemas.jobs.kind import registry
from penstock.schemas.wire.codec import Envelope, encode

SOON = timedelta(minutes=1)


def forgeries(id: str, **options: Any) -> dict[str, Any]:
    """Messages that differ from a `Note` of the tenant acme on its own queue in one thing each."""
    return {
        "kind": message(Login(user="mallory"), id=id, tenant="acme", **options),
        "tenant": message(Note(text="forged"), id=id, tenant="mallory", **options),
        "no tenant": message(Note(text="forged"), id=id, **options),
    }


def all_forgeries(id: str, **options: Any) -> dict[str, Any]:
    return forgeries(id, **options) | {
        "queue": message(Note(text="forged"), id=id, tenant="acme", queue="others", **options)
    }


def sent_job(ledger: Database) -> Any:
    """The row of a job that the dispatcher has sent, and no worker has claimed."""
    sent = encode(Note(text="real"), tenant="acme", due_at=datetime.now(UTC))
    due.schedule(ledger, [sent])
    change(ledger, sent.id, state=State.QUEUED)
    return row_of(ledger, sent.id)


@pytest.mark.parametrize("what", ["kind", "tenant", "no tenant", "queue"])
def test_a_message_that_differs_from_the_job_on_record_does_not_claim_it(ledger: Database, what: str) -> None:
    row = sent_job(ledger)
    answer = claim_one(ledger, all_forgeries(row.id)[what])
    assert isinstance(answer, Refusal)
    assert answer.reason == ID_TAKEN
    assert row_of(ledger, row.id) == row
    assert isinstance(claim_one(ledger, message(Note(text="real"), id=row.id, tenant="acme")), Claim)


@pytest.mark.parametrize("what", ["kind", "tenant", "no tenant"])
def test_a_message_that_differs_from_a_running_or_ended_job_is_not_taken_for_a_copy(
    ledger: Database, what: str
) -> None:
    start_worker(ledger, "w1")
    running = claimed(ledger, message(Note(), tenant="acme"))
    before = row_of(ledger, running.message.id)
    for again in (False, True):
        answer = claim_one(ledger, forgeries(running.message.id)[what], worker="w2", again=again)
        assert isinstance(answer, Refusal)
        assert answer.reason == ID_TAKEN
    assert row_of(ledger, running.message.id) == before
    end(ledger, running, Outcome.SUCCEEDED)
    answer = claim_one(ledger, forgeries(running.message.id)[what], worker="w2")
    assert isinstance(answer, Refusal)
    assert answer.reason == ID_TAKEN


def test_a_copy_on_the_queue_that_its_kind_has_left_is_absorbed(ledger: Database) -> None:
    sent = message(Note())
    end(ledger, claimed(ledger, sent), Outcome.SUCCEEDED)
    answer = claim_one(ledger, message(Note(), id=sent.id, queue="moved"))
    assert isinstance(answer, Refusal)
    assert answer.reason == "ended"


def test_jobs_recorded_under_an_alias_or_a_newer_name_are_claimed(ledger: Database) -> None:
    class Renamed(Job, kind="taken.new", queue="notes", aliases=("taken.old",)):
        text: str = ""

    try:
        for name in ("taken.old", "taken.new", "taken.newer"):  # the last: of a newer worker, and not known here
            sent = message(Renamed())
            due.schedule(ledger, [encode(Renamed(), id=sent.id, due_at=datetime.now(UTC))])
            change(ledger, sent.id, state=State.QUEUED, kind=name)
            assert isinstance(claim_one(ledger, sent), Claim)
    finally:
        registry.discard(Renamed.kind())


def test_a_job_cancelled_unseen_or_without_its_tenant_is_found_cancelled(ledger: Database) -> None:
    sent = message(Note(), tenant="acme", queue="elsewhere")
    request_cancel(ledger, sent.id, kind="ledger.note")
    answer = claim_one(ledger, sent)
    assert isinstance(answer, Refusal)
    assert answer.reason == "cancelled"


def test_a_job_replayed_with_an_edit_is_claimed_under_its_own_id(ledger: Database) -> None:
    sent = message(Note(text="wrong"), tenant="acme", queue="moved")
    end(ledger, claimed(ledger, sent), Outcome.DEAD, error="no")
    [result] = replay(ledger, Selection(ids=(sent.id,)), actor="ada", edit={"text": "right"})
    assert result.problem is None
    again = due.envelope_of(row_of(ledger, sent.id))
    assert again.queue == "moved"
    assert isinstance(claim_one(ledger, message(Note(), id=sent.id, tenant="acme", queue="moved", fence=1)), Claim)


@pytest.mark.parametrize("what", ["unknown kind", "newer version", "tenant", "queue"])
def test_a_message_that_no_worker_knows_does_not_hold_back_another_job(ledger: Database, what: str) -> None:
    row = sent_job(ledger)
    options: dict[str, Any] = {"tenant": "mallory"} if what == "tenant" else {"tenant": "acme"}
    if what == "queue":
        options["queue"] = "others"
    forged = encode(Login(user="m") if what == "newer version" else Note(text="forged"), id=row.id, **options)
    if what == "unknown kind":
        forged.headers["task"] = "taken.unheard"
    request = due.HoldRequest(due.waiting(forged), 0, True, "unknown_kind", "not known")
    real = due.HoldRequest(
        due.waiting(encode(Note(text="real"), id=row.id, tenant="acme")), 0, True, "unknown_kind", ""
    )
    assert due.hold_back(ledger, [request], worker="w1", grace=SOON) == [ID_TAKEN]
    assert row_of(ledger, row.id) == row
    assert due.hold_back(ledger, [request, real], worker="w1", grace=SOON) == [ID_TAKEN, "held"]


@pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED, State.RUNNING, State.SUCCEEDED])
@pytest.mark.parametrize("reason", [ID_TAKEN, "undecodable"])
def test_a_forged_message_is_buried_under_an_id_of_its_own(ledger: Database, state: State, reason: str) -> None:
    row = sent_job(ledger)
    change(ledger, row.id, state=state)
    before = row_of(ledger, row.id)
    forged = encode(Note(text="forged"), id=row.id, tenant="mallory")
    dead_letter_id = bury_message(ledger, forged, forged.body, reason, "no")
    assert dead_letter_id != row.id
    [letter] = letters(ledger)
    assert (letter.id, letter.reason, letter.raw) == (dead_letter_id, reason, forged.body)
    assert row_of(ledger, row.id) == before


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING])
def test_a_forged_message_that_the_broker_gave_up_on_does_not_bury_another_job(ledger: Database, state: State) -> None:
    row = sent_job(ledger)
    change(ledger, row.id, state=state, worker="w1")
    before = row_of(ledger, row.id)
    forged = encode(Login(user="mallory"), id=row.id, tenant="acme")
    assert bury_dropped(ledger, forged, forged.body, "given up")
    assert [letter.reason for letter in letters(ledger)] == [ID_TAKEN]
    assert row_of(ledger, row.id) == before


def test_a_forged_message_with_a_cancelled_key_does_not_cancel_another_job(ledger: Database) -> None:
    row = sent_job(ledger)
    forged = encode(Note(), id=row.id, tenant="acme", key="gone", due_at=datetime.now(UTC) + SOON)
    cancel_key(ledger, "gone")
    due.schedule(ledger, [forged])
    assert row_of(ledger, row.id) == row


def test_an_untracked_job_that_fails_does_not_overwrite_another_job(ledger: Database) -> None:
    row = sent_job(ledger)
    sent = message(Tick(), id=row.id)
    forged = Claim(sent, 0, 1, 0, 0, datetime.now(UTC), tracked=False)
    for outcome in (Outcome.RETRY, Outcome.DEAD):
        failed = attempt_outcome(forged, outcome, error="no", due_at=datetime.now(UTC))
        assert record(ledger, [failed], worker="w1") == [True]
    assert row_of(ledger, row.id) == row
    assert [letter.reason for letter in letters(ledger)] == [ID_TAKEN, ID_TAKEN]
    assert row.id not in {letter.id for letter in letters(ledger)}


def test_a_once_job_is_taken_over_from_a_dead_worker_as_before(ledger: Database) -> None:
    sent = message(Pay(amount=1), tenant="acme")
    start_worker(ledger, "w1", lease=timedelta(seconds=-1))
    claimed(ledger, sent)
    assert claimed(ledger, sent, worker="w2", again=True).crashes == 1


def test_the_headers_of_an_unreadable_message_may_be_anything(ledger: Database) -> None:
    row = sent_job(ledger)
    for ours in ({"tenant": ["acme"]}, [], "text", None):
        headers = {"task": "ledger.note", "id": row.id, "penstock": ours}
        assert bury_message(ledger, Envelope("notes", "normal", headers, b"?"), b"?", "undecodable", "no") != row.id
    assert row_of(ledger, row.id) == row
