"""`penstock workflows`: the pictures, and the orders people give."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ledgers import upgraded
from support.workflows import jobs as acme
from support.workflows.drive import move, result, run, start, waiting
from typer.testing import CliRunner

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows import commands
from penstock.workers.cli import app
from penstock.workers.workflows import render


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str, prefix: str) -> Iterator[Database]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_BROKER_URL", redis_url)
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "sqlite:///ledger.db")
    monkeypatch.setenv("PENSTOCK_PREFIX", prefix)
    monkeypatch.setenv("PENSTOCK_ACTOR", "ada")
    database = Database(upgraded("sqlite:///ledger.db"))
    yield database
    database.close()


def penstock(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["workflows", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_workflow_is_drawn_as_a_tree_with_states_and_durations(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north", "south"]))
    move(ledger)
    run(ledger, waiting(ledger), "w1", result)
    move(ledger)
    run(ledger, waiting(ledger)[:1], "w1", result)
    move(ledger)
    code, out, err = penstock("show", workflow_id)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith(f"wf.nightly {workflow_id}  running  ")
    assert re.match(r"└─ ✔ orders \[wf\.sync\]  succeeded  \d+(\.\d\d)? s", lines[1]), lines[1]
    assert lines[2].startswith("   └─ ▶ report [wf.report]  running  1 of 2 jobs  ")
    assert lines[3] == "      └─ · tell [wf.mail]  pending  (and after orders)"


def test_compensations_that_ran_are_drawn_too(ledger: Database) -> None:
    from penstock.schemas import Outcome

    workflow_id = start(ledger, acme.Trip())
    for outcome in (Outcome.SUCCEEDED, Outcome.DEAD, Outcome.SUCCEEDED):
        move(ledger)
        run(ledger, waiting(ledger), "w1", result, outcome=outcome)
    move(ledger)
    code, out, _ = penstock("show", workflow_id)
    assert code == 0
    assert "  step hotel is dead: it failed" in out
    assert "compensations\n  ✔ cancel_flight [wf.release]  succeeded" in out
    picture = "\n".join(render.mermaid(commands.show(ledger, workflow_id)))
    assert "flight -. compensated by .-> cancel_flight" in picture
    assert "cancel_hotel" not in picture


def test_a_workflow_is_drawn_for_markdown_and_for_programs(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    move(ledger)
    out = penstock("show", workflow_id, "--format", "mermaid")[1]
    assert re.match(r'flowchart TD\n    orders\["orders<br>running<br>\d+(\.\d\d)? s', out), out
    assert '    report[["report<br>pending"]]:::pending\n    orders --> report\n' in out
    assert "classDef running fill:#cfe2ff" in out
    for arguments in (("--format", "json"), ("--json",)):
        output = json.loads(penstock("show", workflow_id, *arguments)[1])
        assert (output["id"], output["state"]) == (workflow_id, "running")
        assert [(step["name"], step["state"]) for step in output["steps"]] == [
            ("orders", "running"),
            ("report", "pending"),
            ("tell", "pending"),
        ]


def test_workflows_are_listed(ledger: Database) -> None:
    first, second = start(ledger, acme.Nightly(regions=[])), start(ledger, acme.Trip())
    listed = json.loads(penstock("list", "--json")[1])
    assert [(workflow["id"], workflow["done"], workflow["steps"]) for workflow in listed] == [
        (second, 0, 5),
        (first, 0, 3),
    ]
    assert [workflow["id"] for workflow in json.loads(penstock("list", "--kind", "wf.trip", "--json")[1])] == [second]
    assert json.loads(penstock("list", "--state", "failed", "--json")[1]) == []
    assert "no workflows" in penstock("list", "--state", "failed")[2]


def test_a_step_is_answered_and_who_did_it_is_on_record(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Approved())
    code, _, err = penstock("signal", workflow_id, "approval", '{"approved": 3, "by": 1}')
    assert (code, "step approval: the answer does not fit: approved" in err) == (2, True)
    assert penstock("signal", workflow_id, "approval", "{")[0] == 2
    code, out, _ = penstock("signal", workflow_id, "approval", '{"approved": true}')
    assert (code, out) == (0, f"{workflow_id} approval is answered\n")
    [act] = audit.find(ledger, subject=workflow_id)
    assert (act.actor, act.act, act.subject_kind, act.detail) == ("ada", "signal", "workflow", {"step": "approval"})


def test_a_workflow_is_cancelled_and_retried(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    move(ledger)
    assert penstock("retry", workflow_id)[0] == 1
    assert penstock("cancel", workflow_id, "--no-compensate")[:2] == (0, f"{workflow_id} is asked to stop\n")
    move(ledger)
    assert commands.show(ledger, workflow_id).row.state == "cancelled"
    assert penstock("retry", workflow_id, "--from", "orders", "--all")[0] == 2
    assert penstock("retry", workflow_id, "--input", "[]")[0] == 2
    code, out, _ = penstock("retry", workflow_id, "--from", "orders", "--input", '{"regions": ["south"]}')
    assert (code, out) == (0, f"{workflow_id} goes on: orders, report, tell\n")
    move(ledger)
    [job] = [row for row in waiting(ledger) if row.kind == "wf.sync"]
    assert json.loads(job.payload) == {"regions": ["south"]}
    assert [act.act for act in audit.find(ledger, subject=workflow_id)] == ["retry", "cancel"]


def test_an_unknown_workflow_is_reported(ledger: Database) -> None:
    code, _, err = penstock("show", "nothing")
    assert (code, err) == (1, "penstock: no workflow with the id nothing is recorded in the ledger\n")


def test_a_workflow_that_no_dispatcher_moves_is_reported(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from penstock.workers.cli import workflows

    monkeypatch.setattr(workflows, "_LATE", timedelta(0))
    workflow_id = start(ledger, acme.Nightly(regions=[]))
    code, _, err = penstock("show", workflow_id)
    assert code == 0
    assert "no dispatcher has moved it on since" in err
    assert "what defines wf.nightly: penstock dispatcher --import" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (12, "12 s"), (184, "3 m 4 s"), (7_380, "2 h 3 m"), (273_600, "3 d 4 h"), (-1, "0.00 s")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    assert render.took(now, now + timedelta(seconds=seconds)) == text


def test_a_workflow_is_started_as_a_job_is_enqueued(ledger: Database) -> None:
    code, out, _ = penstock("start", "wf.nightly", '{"regions": ["north"]}', "--delay", "1h")
    assert code == 0
    assert len(out.strip()) == 36
    code, _, err = penstock("start", "wf.nightly", '{"months": 3}')
    assert (code, "wf.nightly: regions: Field required" in err) == (2, True)
