"""Workflows in the console: the list, one with its graph, answers, retries and cancels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from served import Flower
from support.ledgers import start_worker
from support.polling import until
from support.workflows import drive
from support.workflows import jobs as acme

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.schemas import Outcome
from penstock.workers.workflows.definition import definitions


@pytest.fixture
def console(start_console: Callable[..., Flower]) -> Flower:
    return start_console("support.workflows.jobs")


def move_on(ledger: Database, outcome: Outcome = Outcome.SUCCEEDED, rounds: int = 3) -> None:
    for _ in range(rounds):
        drive.advance_due(ledger)
        rows = [row for row in drive.waiting(ledger) if row.kind.startswith("wf.") and row.kind not in definitions]
        if rows:
            drive.run(ledger, rows, "w1", drive.result, outcome=outcome)


def test_a_workflow_waits_for_an_answer_and_gets_it(
    console: Flower, ledger: Database, open_page: Callable[..., Any]
) -> None:
    start_worker(ledger, "w1")
    id = drive.start(ledger, acme.Approved())
    move_on(ledger)
    [row] = console.get("api/penstock/workflows?state=running")["workflows"]
    assert (row["id"], row["kind"]) == (id, "wf.approved")
    assert console.get(f"api/penstock/workflows/{id}")["waiting"] == ["approval"]
    page = open_page(f"workflows/{id}")
    page.locator("svg text", has_text="approval").first.wait_for(timeout=60_000)
    page.get_by_label("Answer, as JSON").fill('{"approved": true, "by": "ada"}')
    page.get_by_role("button", name="Answer").click()
    page.get_by_role("button", name="Do it").click()
    page.get_by_text("Step approval has its answer").wait_for(timeout=60_000)
    until(lambda: move_on(ledger) or "waiting" not in _states(console, id), "the step after the answer")
    [act] = audit.find(ledger, acts=["signal"])
    assert (act.actor, act.subject) == ("op", id)


def test_a_failed_workflow_is_retried_from_a_step(console: Flower, ledger: Database) -> None:
    start_worker(ledger, "w1")
    id = drive.start(ledger, acme.Nightly(regions=["north"]))
    move_on(ledger, Outcome.DEAD)
    assert console.get(f"api/penstock/workflows/{id}")["final"] is True
    assert console.refusal(f"workflows/{id}/cancel", {})[0] == 409
    assert console.send(f"workflows/{id}/retry", {"from_step": "orders"})["steps"] == ["orders", "report", "tell"]
    assert console.send(f"workflows/{id}/cancel", {"compensate": False})["message"]
    until(lambda: move_on(ledger) or console.get(f"api/penstock/workflows/{id}")["final"], "the end of the workflow")
    assert console.get("workflows/none") == 404
    assert {act.act for act in audit.find(ledger, subject=id)} == {"retry", "cancel"}


def _states(console: Flower, id: str) -> set[str]:
    return {step["state"] for step in console.get(f"api/penstock/workflows/{id}")["workflow"]["steps"]}
