"""Acts on all jobs that match a filter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.ledgers import Note, claimed, end, letter_of, message, row_of, stock_envelope

from penstock.ledger.queries.jobs import JobFilter
from penstock.ledger.queries.scope import Scope
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.selected import Cancel, Move, Progress, Reschedule, Retry, act_on_all
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import encode

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.ledger.transitions.selected.BATCH", 2)


def waiting(ledger: Database, count: int, tenant: str = "acme") -> list[str]:
    envelopes = [encode(Note(), tenant=tenant, due_at=datetime.now(UTC) + HOUR) for _ in range(count)]
    due.schedule(ledger, envelopes)
    return [envelope.id for envelope in envelopes]


def states(ledger: Database, ids: list[str]) -> list[str]:
    return [row_of(ledger, id).state for id in ids]


def test_all_that_match_are_cancelled_once_with_one_line_in_the_audit_log(ledger: Database) -> None:
    ids, others = waiting(ledger, 5), waiting(ledger, 2, "other")
    running = claimed(ledger, message(Note(), tenant="acme")).message.id
    ended = message(Note(), tenant="acme")
    end(ledger, claimed(ledger, ended), Outcome.SUCCEEDED)
    chosen = JobFilter(tenant="acme")
    assert act_on_all(ledger, chosen, Cancel(), actor="ada", dry_run=True) == Progress(done=6)
    assert states(ledger, ids) == ["scheduled"] * 5
    assert audit.find(ledger) == []
    seen: list[Progress] = []
    assert act_on_all(ledger, chosen, Cancel(), actor="ada", on_progress=seen.append) == Progress(done=6)
    assert [progress.done for progress in seen] == [2, 4, 6]
    assert states(ledger, ids) == ["cancelled"] * 5
    assert (row_of(ledger, running).state, row_of(ledger, running).cancel_requested) == ("running", True)
    assert states(ledger, [*others, ended.id]) == ["scheduled", "scheduled", "succeeded"]
    again = act_on_all(ledger, chosen, Cancel(), actor="ada")
    assert again.done == 0, "the running one was asked already"
    [line] = audit.find(ledger)
    assert (line.act, line.actor, line.count, line.detail["tenant"]) == ("cancel", "ada", 6, "acme")
    assert [act.id for act in audit.find(ledger, subject=running)] == [line.id]


def test_an_act_stops_between_two_batches_and_covers_what_it_did(ledger: Database) -> None:
    ids = waiting(ledger, 5)
    result = act_on_all(ledger, JobFilter(), Cancel(), actor="ada", is_stopped=lambda: True)
    assert result == Progress(done=2, stopped=True)
    assert sorted(states(ledger, ids)) == ["cancelled"] * 2 + ["scheduled"] * 3
    assert [line.count for line in audit.find(ledger)] == [2]
    rest = act_on_all(ledger, JobFilter(), Cancel(), actor="ada", after=result.next, line=result.line)
    assert rest == Progress(done=3)
    assert [line.count for line in audit.find(ledger)] == [5], "the same line"
    waiting(ledger, 1)
    act_on_all(ledger, JobFilter(), Cancel(), actor="eve", line=result.line)
    assert sorted((line.actor, line.count) for line in audit.find(ledger)) == [("ada", 5), ("eve", 1)], "not another's"


def test_ended_jobs_are_tried_again_but_those_that_succeeded_only_by_force(ledger: Database) -> None:
    outcomes = [Outcome.DEAD, Outcome.DISCARDED, Outcome.CANCELLED, Outcome.SUCCEEDED]
    sent = [message(Note()) for _ in outcomes]
    for item, outcome in zip(sent, outcomes, strict=True):
        end(ledger, claimed(ledger, item), outcome, error="E: no", result="1" if outcome == Outcome.SUCCEEDED else None)
    ids = [item.id for item in sent]
    assert act_on_all(ledger, JobFilter(states=(State.DEAD,)), Retry(), actor="ada") == Progress(done=1)
    assert states(ledger, ids) == ["scheduled", "discarded", "cancelled", "succeeded"]
    assert letter_of(ledger, ids[0]).replayed_at is not None
    assert act_on_all(ledger, JobFilter(), Retry(), actor="ada") == Progress(done=2)
    assert act_on_all(ledger, JobFilter(), Retry(force=True), actor="ada") == Progress(done=1)
    assert states(ledger, ids) == ["scheduled"] * 4


def test_a_job_whose_message_was_not_seen_is_refused_and_an_unread_one_is_read_again(ledger: Database) -> None:
    unseen = message(Note()).id
    request_cancel(ledger, unseen, kind="ledger.note")
    bury_message(ledger, stock_envelope("ledger.note", {}, queue="x", id="stock"), b"", "unknown_kind", "no")
    result = act_on_all(ledger, JobFilter(), Retry(), actor="ada")
    assert result == Progress(done=1, refused=1)
    assert states(ledger, [unseen, "stock"]) == ["cancelled", "scheduled"]


def test_waiting_jobs_are_rescheduled_and_moved_once(ledger: Database) -> None:
    ids = waiting(ledger, 3)
    soon = encode(Note(), due_at=datetime.now(UTC) + HOUR / 2, expires_at=datetime.now(UTC) + HOUR)
    due.schedule(ledger, [soon])
    fence = row_of(ledger, ids[0]).fence
    later = (datetime.now(UTC) + 2 * HOUR).replace(microsecond=0)
    assert act_on_all(ledger, JobFilter(), Reschedule(later), actor="ada") == Progress(done=3, refused=1)
    assert {row_of(ledger, id).due_at for id in ids} == {later}
    assert row_of(ledger, ids[0]).fence > fence
    assert act_on_all(ledger, JobFilter(), Reschedule(later), actor="ada").done == 0
    assert act_on_all(ledger, JobFilter(ids=tuple(ids)), Move("ticks"), actor="ada") == Progress(done=3)
    assert act_on_all(ledger, JobFilter(ids=tuple(ids)), Move("ticks"), actor="ada").done == 0
    assert {row_of(ledger, id).queue for id in ids} == {"ticks"}


def test_nothing_outside_of_the_scope_is_touched(ledger: Database) -> None:
    ours, theirs = waiting(ledger, 1, "acme"), waiting(ledger, 1, "Acme")
    chosen = JobFilter(scope=Scope(tenants=("acme",)))
    assert act_on_all(ledger, chosen, Cancel(), actor="ada", dry_run=True) == Progress(done=1)
    assert act_on_all(ledger, chosen, Cancel(), actor="ada") == Progress(done=1)
    assert states(ledger, [*ours, *theirs]) == ["cancelled", "scheduled"]
