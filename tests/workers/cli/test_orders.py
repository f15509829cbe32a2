"""`penstock jobs cancel` and `reschedule`, by id and by key, and `penstock enqueue --unique`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.ledgers import Note, claimed, end, message, row_of

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.schemas import Outcome, State

Run = Callable[..., Any]
HOUR = timedelta(hours=1)


def retrying(ledger: Database, **options: Any) -> str:
    sent = message(Note(), **options)
    end(ledger, claimed(ledger, sent), Outcome.RETRY, error="no", due_at=datetime.now(UTC) + HOUR)
    return sent.id


def running(ledger: Database, **options: Any) -> str:
    sent = message(Note(), **options)
    claimed(ledger, sent)
    return sent.id


def test_jobs_are_cancelled_by_their_key_and_who_did_it_is_on_record(penstock: Run, ledger: Database) -> None:
    waits, runs, other = retrying(ledger, key="k"), running(ledger, key="k"), retrying(ledger, key="other")
    result = penstock("jobs", "cancel", "--key", "k", "--kind", "ledger.note", "--actor", "ada")
    assert (result.code, sorted(result.out.split())) == (0, sorted([waits, runs]))
    assert row_of(ledger, waits).state == State.CANCELLED
    assert row_of(ledger, runs).cancel_requested
    assert row_of(ledger, other).state == State.RETRYING
    [act] = audit.find(ledger)
    assert (act.actor, act.act, act.count, act.detail) == ("ada", "cancel", 2, {"key": "k", "kind": "ledger.note"})
    assert [entry.id for entry in audit.find(ledger, subject=runs)] == [act.id]
    assert penstock("jobs", "cancel", "--key", "nobody's", "--actor", "ada").code == 0
    assert len(audit.find(ledger)) == 2  # it holds for what comes out of the broker
    penstock("jobs", "cancel", other, "--actor", "bob")
    assert audit.find(ledger, actor="bob")[0].subject == other


def test_waiting_jobs_are_rescheduled_by_id_and_by_key(penstock: Run, ledger: Database) -> None:
    first, second, runs = retrying(ledger, key="k"), retrying(ledger, key="k"), running(ledger)
    result = penstock("jobs", "reschedule", first, "--at", "2031-01-01T00:00+01:00", "--actor", "ada")
    assert (result.code, row_of(ledger, first).due_at) == (0, datetime(2030, 12, 31, 23, tzinfo=UTC))
    result = penstock("jobs", "reschedule", "--key", "k", "--in", "2h", "--actor", "ada")
    assert sorted(result.out.split()) == sorted([first, second])
    assert HOUR < row_of(ledger, first).due_at - datetime.now(UTC) <= 2 * HOUR
    result = penstock("jobs", "reschedule", second, runs, "--in", "0")
    assert result.code == 1
    assert f"job {runs} is running" in result.err
    assert row_of(ledger, second).due_at <= datetime.now(UTC)
    assert [(act.act, act.count) for act in audit.find(ledger, actor="ada")] == [("reschedule", 2), ("reschedule", 1)]
    assert penstock("jobs", "reschedule", "--key", "none", "--in", "1h").code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("cancel",),
        ("cancel", "x", "--key", "k"),
        ("cancel", "x", "--tenant", "t"),
        ("reschedule", "--in", "1h"),
        ("reschedule", "x"),
        ("reschedule", "x", "--in", "1h", "--at", "2031-01-01T00:00Z"),
        ("reschedule", "x", "--in", "1h", "--kind", "ledger.note"),
    ],
)
def test_ambiguous_arguments_are_refused(penstock: Run, ledger: Database, arguments: tuple[str, ...]) -> None:
    assert penstock("jobs", *arguments).code == 2
    assert audit.find(ledger) == []


def test_a_unique_job_is_enqueued_once(penstock: Run, ledger: Database) -> None:
    def enqueue(*options: str) -> Any:
        return penstock("enqueue", "ledger.note", "{}", "--key", "k", *options, "--json")

    first = enqueue("--unique", "existing")
    assert (first.code, first.json["created"]) == (0, True)
    assert enqueue("--unique", "existing").json == {"id": first.json["id"], "created": False}
    result = enqueue("--unique", "reject", "--unique-for", "1h")
    assert result.code == 1
    assert first.json["id"] in result.err
    assert enqueue("--unique", "debounce", "--debounce", "1h").json["created"]
    assert row_of(ledger, first.json["id"]).state == State.CANCELLED
    assert enqueue("--unique", "sometimes").code == 2
    assert enqueue("--unique", "debounce").code == 2
