"""The overview and the kinds, over rates with known numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from served import Flower
from support.ledgers import stock_envelope
from support.polling import until

from penstock.ledger.members import controls, heartbeats
from penstock.ledger.members.controls import Scope
from penstock.ledger.rows.rates.counting import Cell, Tally, this_minute
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import bury

LEASE = timedelta(minutes=10)
EVIL = "<script>alert(1)</script>"


def tally(count: int, run: float, wait: float, seed: int = 1) -> Tally:
    dice, result = random.Random(seed), Tally(count)
    result.run.add([run * dice.lognormvariate(0, 0.4) for _ in range(count)])
    result.wait.add([wait * dice.lognormvariate(0, 0.6) for _ in range(count)])
    return result


def fill(ledger: Database) -> None:
    """An hour of three kinds, of which one has a name in HTML; two workers, no dispatcher, a dead letter."""
    now = this_minute()
    tallies: dict[tuple[int, Cell], Tally] = {}
    for ago in range(60):
        tallies[now - ago, ("mail.send", "mail", "succeeded")] = tally(200 + 3 * ago, 0.2, 0.05, ago)
        tallies[now - ago, ("report.build", "slow", "succeeded")] = tally(20, 8.0, 3.0, ago)
        if ago % 7 == 3:
            tallies[now - ago, ("mail.send", "mail", "retry")] = tally(12, 1.0, 0.05, ago)
    tallies[now, (EVIL, "mail", "succeeded")] = tally(5, 0.1, 0.1)
    for name in ("w1", "w2"):
        kinds = {"mail.send": "mail", "sync.idle": "slow"}
        heartbeats.register(ledger, name, engine="celery", queues=["mail", "slow"], kinds=kinds, lease=LEASE)
    heartbeats.beat(ledger, "w1", lease=LEASE)
    heartbeats.report(ledger, "w1", tallies=tallies)
    bury.bury_message(ledger, stock_envelope("no.such", {}, queue="mail"), b"", "unknown_kind", "no such kind")


def test_the_overview_has_the_numbers_of_the_ledger(console: Flower, ledger: Database) -> None:
    fill(ledger)
    values = console.get("api/penstock/overview")
    mail = values["kinds"]["mail.send"]
    succeeded = sum(200 + 3 * ago for ago in range(60))
    assert mail["outcomes"]["succeeded"] == succeeded
    assert mail["errors"] == 9 * 12
    assert values["kinds"]["report.build"]["run"]["p50"] == pytest.approx(8.0, rel=0.15)
    assert list(values["queues"]) == ["mail", "slow"]
    assert len(values["series"]) == 60
    assert (values["workers"], values["dispatchers"], values["dead_letters"]) == (2, 0, 1)
    assert [need["check"] for need in values["needs"] if need["level"] == "FAIL"] == ["dispatchers"]
    assert {need["check"]: need["page"] for need in values["needs"]}["dead letters"] == "deadletters"
    html = console.get("overview")
    assert EVIL not in html
    assert "&lt;script&gt;" in html
    bounded = console.get("api/penstock/overview?kind=report.build&since=24h")
    assert list(bounded["kinds"]) == ["report.build"]


@pytest.mark.parametrize(("scope", "name"), [("all", ""), ("queue", "mail"), ("kind", "mail.send")])
def test_the_overview_names_a_pause(console: Flower, ledger: Database, scope: Scope, name: str) -> None:
    controls.pause(ledger, scope, name, actor="ada", reason=EVIL)
    [need] = [need for need in console.get("api/penstock/overview")["needs"] if need["check"] == "paused"]
    assert need["page"] == "queues"
    assert "is paused by ada" in need["detail"]
    assert EVIL not in console.get("overview")


def test_the_front_page_is_the_overview(console: Flower) -> None:
    assert "What needs a person now" in console.get("")


def test_all_kinds_are_listed_those_that_only_workers_know_too(console: Flower, ledger: Database) -> None:
    fill(ledger)
    rows = {row["kind"]: row for row in console.get("api/penstock/kinds")["kinds"]}
    assert rows["sync.idle"] == {"kind": "sync.idle", "queue": "slow", "workers": 2, "pause": None}
    assert rows["report.build"]["ended"] == 60 * 20
    assert rows["mail.send"]["workers"] == 2
    html = console.get("kinds")
    assert EVIL not in html
    assert "sync.idle" in html


def test_a_wrong_time_is_refused(console: Flower) -> None:
    assert console.get("api/penstock/overview?since=3y") == 400


def test_the_charts_are_drawn_and_follow_new_numbers(open_page: Callable[..., Any], ledger: Database) -> None:
    fill(ledger)
    page = open_page("overview")
    page.wait_for_selector(".console-chart canvas", timeout=60_000)
    assert page.locator(".console-chart canvas").count() == 3
    page.get_by_text("The charts as a table").click()
    before = page.locator(".metric-value").first.inner_text()
    more = {(this_minute(), ("mail.send", "mail", "succeeded")): tally(90_000, 0.1, 0.1)}
    heartbeats.beat(ledger, "w2", lease=LEASE)
    heartbeats.report(ledger, "w2", tallies=more)
    until(lambda: page.locator(".metric-value").first.inner_text() != before, "the new number")
    assert page.locator("details[open]").count() == 1
    assert page.locator(".console-chart canvas").count() == 3
