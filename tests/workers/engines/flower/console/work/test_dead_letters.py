"""Dead letters in the console: groups, one group, one letter, replay, discard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from console_jobs import SendInvoice
from served import Flower
from support.ledgers import claimed, end, letters, message, row_of, start_worker
from support.polling import until

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.schemas.states import Outcome, State

HOSTILE = "<script>alert('x')</script>\x1b[31m"


@pytest.fixture
def console(start_console: Callable[..., Flower]) -> Flower:
    return start_console("console_jobs", FLOWER_BASIC_AUTH="ada:looks", PENSTOCK_FLOWER_ADMINS='["op"]')


def bury(ledger: Database, count: int, error: str = "ValueError: the card was refused", **options: Any) -> list[str]:
    start_worker(ledger, "w1")
    ids = []
    for number in range(count):
        job = SendInvoice(customer=f"c{number}", amount=number, card="4111-1111")
        sent = message(job, **options)
        claim = claimed(ledger, sent)
        trace = f'Traceback (most recent call last):\n  File "shop/mails.py", line 7, in send\n{error}'
        assert end(ledger, claim, Outcome.DEAD, error=error, traceback=trace)
        ids.append(sent.id)
    return ids


def test_groups_and_letters_are_shown_without_sensitive_values(console: Flower, ledger: Database) -> None:
    ids = bury(ledger, 3, tenant="acme", key="invoice-7")
    [group] = console.get("api/penstock/deadletters")["groups"]
    assert (group["count"], group["kind"], sum(group["trend"])) == (3, "shop.send_invoice", 3)
    page = console.get(f"api/penstock/deadletters/{group['fingerprint']}")
    assert {letter["id"] for letter in page["letters"]} == set(ids)
    assert page["sample"]["tenant"] == "acme"
    for address in (f"deadletters/{group['fingerprint']}", f"deadletters/letters/{ids[0]}"):
        html = console.get(address)
        assert "the card was refused" in html
        assert "4111" not in html
        assert "4111" not in str(console.get(f"api/penstock/{address}"))
    assert console.get("deadletters/abcdef0123456789") == 404
    assert console.get("deadletters/letters/none") == 404


def test_filters_choose_and_pages_follow_each_other(console: Flower, ledger: Database) -> None:
    bury(ledger, 60, tenant="acme")
    bury(ledger, 2, tenant="other")
    [group] = console.get("api/penstock/deadletters?tenant=other")["groups"]
    assert group["count"] == 2
    address = f"api/penstock/deadletters/{group['fingerprint']}"
    first = console.get(address)
    second = console.get(f"{address}?cursor={first['cursor']}")
    assert (len(first["letters"]), len(second["letters"]), second["cursor"]) == (50, 12, None)


def test_a_replay_edits_and_throttles_and_is_audited(console: Flower, ledger: Database) -> None:
    ids = bury(ledger, 3)
    [group] = console.get("api/penstock/deadletters")["groups"]
    body = {"group": group["fingerprint"], "edit": {"amount": 5}, "per_second": 2}
    dry = console.send("deadletters/replay", {**body, "dry_run": True})
    assert dry["message"] == "Would be replayed: 3 of 3"
    assert all(row_of(ledger, id).state == State.DEAD for id in ids)
    assert console.send("deadletters/replay", body)["replayed"] == 3
    rows = [row_of(ledger, id) for id in ids]
    assert all('"amount":5' in row.payload.replace(" ", "") for row in rows)
    assert (max(row.due_at for row in rows) - min(row.due_at for row in rows)).total_seconds() == pytest.approx(1.0)
    [act] = audit.find(ledger, acts=["edit"])
    assert (act.actor, act.count) == ("op", 3)


@pytest.mark.parametrize("edit", [{"amount": 5}, '{"amount": 5}'], ids=["object", "text"])
def test_one_job_is_retried_with_an_edit_as_an_object_or_as_text(
    console: Flower, ledger: Database, edit: dict[str, int] | str
) -> None:
    [id] = bury(ledger, 1)
    for wrong in ("{", "[5]", [5], 5):
        status, answer = console.refusal(f"jobs/{id}/retry", {"edit": wrong})
        assert status == 400
        assert answer["error"].startswith("edit: "), answer
    console.send(f"jobs/{id}/retry", {"edit": edit})
    row = row_of(ledger, id)
    assert row.state == State.SCHEDULED
    assert '"amount":5' in row.payload.replace(" ", "")


def test_a_discard_needs_a_reason_and_an_act_needs_a_choice(console: Flower, ledger: Database) -> None:
    [id] = bury(ledger, 1)
    status, answer = console.refusal("deadletters/discard", {"ids": [id]})
    assert status == 400
    assert "why" in answer["error"]
    status, answer = console.refusal("deadletters/discard", {"why": "old"})
    assert status == 400
    assert "everything" in answer["error"]
    assert console.send("deadletters/discard", {"ids": [id], "why": "old"})["discarded"] == 1
    assert letters(ledger)[0].discarded_at is not None


def test_those_who_only_look_see_no_forms_and_are_refused(console: Flower, ledger: Database) -> None:
    [id] = bury(ledger, 1)
    assert "data-act" not in console.get(f"deadletters/letters/{id}", "ada:looks")
    assert console.refusal("deadletters/replay", {"ids": [id]}, login="ada:looks")[0] == 403
    assert row_of(ledger, id).state == State.DEAD


def test_an_operator_replays_a_group_in_the_browser(
    console: Flower, open_page: Callable[..., Any], ledger: Database
) -> None:
    ids = bury(ledger, 5, error=f"ValueError: {HOSTILE}", tenant=HOSTILE[:20])
    page = open_page("deadletters")
    page.get_by_role("link", name="ValueError").click()
    page.get_by_label("Fields to change").fill('{"amount": 12}')
    page.get_by_role("button", name="Replay").click()
    page.get_by_role("button", name="Do it").click()
    page.get_by_text("Replayed: 5 of 5").wait_for(timeout=60_000)
    until(lambda: all(row_of(ledger, id).state == State.SCHEDULED for id in ids), "the replayed jobs")
    page.get_by_text("No dead letter of this group waits").wait_for(timeout=60_000)
