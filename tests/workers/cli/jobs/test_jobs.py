from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.ledgers import Login, Note, change, claimed, end, message, row_of

from penstock.ledger.sql.database import Database
from penstock.schemas import Outcome, State

Run = Callable[..., Any]


def test_jobs_are_listed_as_a_table_and_as_json(penstock: Run, ledger: Database) -> None:
    sent = [message(Note(text=str(number)), key=f"k{number}") for number in range(2)]
    for job in sent:
        claimed(ledger, job)
    table = penstock("jobs", "list")
    assert table.code == 0
    assert all(job.id in table.out for job in sent)
    rows = penstock("jobs", "list", "--json", "--key", "k1").json
    assert [(row["id"], row["state"], row["kind"]) for row in rows] == [(sent[1].id, "running", "ledger.note")]
    assert datetime.fromisoformat(rows[0]["started_at"]).tzinfo is not None
    assert penstock("jobs", "list", "--json", "--state", "dead").json == []
    newest = max(sent, key=lambda job: (job.sent_at, job.id))
    assert penstock("jobs", "list", "--json", "--since", "1h", "--limit", "1").json[0]["id"] == newest.id
    assert penstock("jobs", "list", "--json", "--since", "2099-01-01T00:00Z").json == []
    assert penstock("jobs", "list", "--since", "2099-01-01T00:00").code == 2


def test_jobs_in_the_broker_that_are_not_on_record_are_listed(penstock: Run, ledger: Database) -> None:
    sent = [penstock("enqueue", "ledger.note", "{}", "--tenant", name, "--json").json["id"] for name in ("a", "b")]
    assert penstock("jobs", "list", "--json").json == []
    listed = penstock("jobs", "list", "--in-broker", "--json")
    assert {row["id"] for row in listed.json} == set(sent)
    assert "2 wait in the broker" in listed.err
    [row] = penstock("jobs", "list", "--in-broker", "--oldest", "--tenant", "b", "--json").json
    assert (row["id"], row["kind"], row["queue"], row["tenant"]) == (sent[1], "ledger.note", "notes", "b")
    assert sent[0] in penstock("jobs", "list", "--in-broker").out
    assert penstock("jobs", "list", "--in-broker", "--state", "dead", "--json").json == []
    assert penstock("jobs", "list", "--oldest").code == 2


def test_a_job_is_shown_with_its_attempts_and_without_what_is_sensitive(penstock: Run, ledger: Database) -> None:
    sent = message(Login(user="ada", password="s3cret"))
    end(ledger, claimed(ledger, sent), Outcome.RETRY, error="no", due_at=datetime.now(UTC))
    output = penstock("jobs", "show", sent.id)
    assert "ada" in output.out
    assert "retry" in output.out
    details = penstock("jobs", "show", sent.id, "--json").json
    assert details["payload"] == {"user": "ada", "password": "***"}
    assert [attempt["outcome"] for attempt in details["attempts"]] == ["retry"]
    assert "s3cret" not in output.out + str(details)


def test_a_job_of_an_unimported_kind_shows_only_the_names_of_its_fields(penstock: Run, ledger: Database) -> None:
    sent = message(Login(user="ada", password="s3cret"))
    claimed(ledger, sent)
    change(ledger, sent.id, kind="somewhere.else")
    assert penstock("jobs", "show", sent.id, "--json").json["payload"] == {"user": "***", "password": "***"}


def test_jobs_are_retried_and_cancelled_several_at_once(penstock: Run, ledger: Database) -> None:
    dead, running, waiting = message(Note()), message(Note()), message(Note())
    end(ledger, claimed(ledger, dead), Outcome.DEAD, error="no")
    claimed(ledger, running)
    end(ledger, claimed(ledger, waiting), Outcome.RETRY, due_at=datetime.now(UTC) + timedelta(hours=1))
    result = penstock("jobs", "retry", running.id, dead.id)
    assert result.code == 1
    assert "running" in result.err
    assert row_of(ledger, dead.id).state == State.SCHEDULED
    result = penstock("jobs", "cancel", running.id, waiting.id)
    assert result.code == 0
    assert result.out.splitlines() == [f"{running.id} is asked to stop", f"{waiting.id} cancelled"]
    assert penstock("jobs", "cancel", "not-seen-yet", "--kind", "ledger.note").code == 0


@pytest.mark.parametrize("arguments", [("show", "x"), ("retry", "x"), ("cancel", "x")])
def test_a_job_that_is_not_recorded_is_an_error_in_a_line(
    penstock: Run, ledger: Database, arguments: tuple[str, ...]
) -> None:
    result = penstock("jobs", *arguments)
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert result.err.startswith("penstock: ")
