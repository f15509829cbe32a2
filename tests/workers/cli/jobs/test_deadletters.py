from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.ledgers import Login, Note, claimed, end, letter_of, message, row_of, stock_envelope

from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.bury import bury_message
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import Envelope

Run = Callable[..., Any]


def bury(ledger: Database, envelope: Envelope, reason: str = "unknown_kind") -> str:
    return bury_message(ledger, envelope, envelope.body, reason, "because")


def test_dead_letters_are_listed_and_shown_without_sensitive_fields(penstock: Run, ledger: Database) -> None:
    login = stock_envelope(
        "ledger.login",
        {"user": "ada", "password": "s3cret", "x": 1},
        queue="notes",
        kwargsrepr="{'password': 's3cret'}",
    )
    strange = stock_envelope("who.knows", {"token": "s3cret"}, queue="celery")
    ids = [bury(ledger, login, "invalid_payload"), bury(ledger, strange)]
    assert all(job_id in penstock("deadletters", "list").out for job_id in ids)
    rows = penstock("deadletters", "list", "--json", "--reason", "unknown_kind").json
    assert [(row["id"], row["kind"]) for row in rows] == [(ids[1], "who.knows")]
    output = penstock("deadletters", "show", ids[0], "--json").json
    assert output["payload"] == {"user": "***", "password": "***", "x": "***"}
    unknown = penstock("deadletters", "show", ids[1])
    assert "token" in unknown.out
    assert "s3cret" not in str(output) + unknown.out
    assert json.loads(penstock("deadletters", "show", ids[1], "--raw").out)[1] == {"token": "s3cret"}


def test_dead_letters_are_replayed_by_id_or_by_selection(penstock: Run, ledger: Database) -> None:
    sent = [message(Note(text=str(number))) for number in range(3)]
    for job in sent:
        end(ledger, claimed(ledger, job), Outcome.DEAD, error="no", reason="failed")
    strange = bury(ledger, stock_envelope("who.knows", {}, queue="celery"))
    assert penstock("deadletters", "replay").code == 2
    assert penstock("deadletters", "replay", sent[0].id).code == 0
    assert penstock("deadletters", "replay", "--all", "--reason", "failed").code == 0
    assert {row_of(ledger, job.id).state for job in sent} == {State.SCHEDULED}
    result = penstock("deadletters", "replay", strange)
    assert result.code == 1
    assert "--import" in result.err
    assert letter_of(ledger, strange).replayed_at is None
    assert len(penstock("deadletters", "list", "--replayed", "--json").json) == 3


def die(ledger: Database, job: Job, error: str = "ValueError: no 1", **options: Any) -> str:
    sent = message(job, **options)
    end(ledger, claimed(ledger, sent), Outcome.DEAD, error=error, traceback="the trace", reason="failed")
    return sent.id


def test_dead_letters_are_grouped_by_error_and_a_group_is_replayed(penstock: Run, ledger: Database) -> None:
    same = [die(ledger, Note(), f"ValueError: no {number}") for number in range(3)]
    other = die(ledger, Note(), "KeyError: 'x'")
    groups = penstock("deadletters", "groups", "--json").json
    assert [(group["count"], group["newest_id"]) for group in groups] == [(3, same[-1]), (1, other)]
    assert "ValueError: no 2" in penstock("deadletters", "groups").out
    group = groups[0]["fingerprint"]
    assert {row["id"] for row in penstock("deadletters", "list", "--group", group, "--json").json} == set(same)
    result = penstock("deadletters", "replay", "--group", group, "--throttle", "60/m")
    assert (result.code, result.out, result.err) == (0, "", "replayed: 3 of 3\n")
    due = [row_of(ledger, job_id).due_at for job_id in same]
    assert [(time - due[0]).total_seconds() for time in due] == [0, 1, 2]
    assert penstock("deadletters", "replay", "--group", group).err == "no dead letters\n"


def test_a_dead_letter_is_shown_with_its_attempts_and_decisions(penstock: Run, ledger: Database) -> None:
    dead_letter_id = die(ledger, Login(user="ada", password="s3cret"), tenant="acme")
    assert penstock("deadletters", "discard", dead_letter_id, "--reason", "too late", "--actor", "bob").code == 0
    output = penstock("deadletters", "show", dead_letter_id, "--json").json
    assert output["payload"] == {"user": "ada", "password": "***"}
    assert [(attempt["outcome"], attempt["traceback"]) for attempt in output["attempts"]] == [("dead", "the trace")]
    assert [(entry["act"], entry["actor"], entry["detail"]) for entry in output["decisions"]] == [
        ("discard", "bob", {"why": "too late"})
    ]
    text = penstock("deadletters", "show", dead_letter_id).out
    assert all(expected in text for expected in ("the trace", "too late", "bob", "acme"))
    assert "s3cret" not in text
    assert [row["id"] for row in penstock("deadletters", "list", "--discarded", "--json").json] == [dead_letter_id]


def test_an_edit_is_checked_and_its_error_names_the_field(penstock: Run, ledger: Database) -> None:
    dead_letter_id = die(ledger, Login(user="ada", password="old"))
    wrong = penstock("deadletters", "replay", dead_letter_id, "--edit", '{"user": 7, "password": "s3cret"}')
    assert wrong.code == 2
    assert "user: Input should be a valid string" in wrong.err
    assert "s3cret" not in wrong.err
    for edit in ("{", "[]", "{}"):
        assert penstock("deadletters", "replay", dead_letter_id, "--edit", edit).code == 2
    assert penstock("deadletters", "replay", dead_letter_id, "--edit", "-", stdin='{"password": "new"}').code == 0
    assert json.loads(row_of(ledger, dead_letter_id).payload) == {"user": "ada", "password": "new"}


def test_a_dry_run_changes_nothing_and_lists_what_cannot_be_replayed(penstock: Run, ledger: Database) -> None:
    fine = die(ledger, Note())
    strange = bury(ledger, stock_envelope("who.knows", {}, queue="celery"))
    result = penstock("deadletters", "replay", "--all", "--dry-run")
    assert result.code == 1
    assert fine in result.out
    assert "would be replayed: 1 of 2" in result.err
    output = penstock("deadletters", "replay", "--all", "--dry-run", "--json").json
    assert (output["dry_run"], output["replayed"], output["refused"]) == (True, 1, 1)
    assert "--import" in next(
        dead_letter["problem"] for dead_letter in output["letters"] if dead_letter["id"] == strange
    )
    assert row_of(ledger, fine).state == State.DEAD
    assert penstock("audit", "list", "--json").json == []


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("replay", ()),
        ("replay", ("x", "--all")),
        ("replay", ("x", "--kind", "k")),
        ("replay", ("x", "--throttle", "50")),
        ("replay", ("x", "--throttle", "0/s")),
        ("discard", ("x",)),
        ("discard", ("--all", "--reason", " ")),
        ("list", ("--replayed", "--discarded")),
    ],
)
def test_an_ambiguous_selection_is_refused(
    penstock: Run, ledger: Database, command: str, arguments: tuple[str, ...]
) -> None:
    dead_letter_id = die(ledger, Note())
    assert (
        penstock(
            "deadletters", command, *(dead_letter_id if argument == "x" else argument for argument in arguments)
        ).code
        == 2
    )
    assert row_of(ledger, dead_letter_id).state == State.DEAD
    assert letter_of(ledger, dead_letter_id).discarded_at is None


def test_the_audit_log_says_who_did_what_to_how_many(
    penstock: Run, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, three = (die(ledger, Note()) for _ in range(3))
    monkeypatch.setenv("PENSTOCK_ACTOR", "deploy-bot")
    penstock("deadletters", "replay", first, second)
    penstock("jobs", "retry", three, "--actor", "ada")
    monkeypatch.delenv("PENSTOCK_ACTOR")
    penstock("deadletters", "discard", "--all", "--reason", "none is left, so this is no act")
    entries = penstock("audit", "list", "--json").json
    assert [(line["actor"], line["act"], line["count"]) for line in entries] == [
        ("ada", "retry", 1),
        ("deploy-bot", "replay", 2),
    ]
    assert [line["act"] for line in penstock("audit", "list", "--subject", second, "--json").json] == ["replay"]
    assert len(penstock("audit", "list", "--act", "retry", "--act", "replay", "--json").json) == 2
    assert penstock("audit", "list", "--act", "erase", "--json").json == []
    assert len(penstock("audit", "list", "--since", "1h", "--actor", "ada", "--json").json) == 1
    assert "deploy-bot" in penstock("audit", "list").out


def test_the_default_actor_is_the_user_of_the_system(
    penstock: Run, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "grace")
    penstock("jobs", "retry", die(ledger, Note()))
    assert [line["actor"] for line in penstock("audit", "list", "--json").json] == ["grace"]
