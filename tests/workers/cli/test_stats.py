from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.ledger.members import heartbeats
from penstock.ledger.rows.rates.counting import Tally, this_minute
from penstock.ledger.sql.database import Database
from penstock.workers.cli.fleet.stats import short


def fill(ledger: Database) -> None:
    minute = this_minute()
    mail, failed = Tally(30), Tally(10)
    mail.run.add([2.0] * 30)
    mail.wait.add([0.04] * 30)
    tallies = {
        (minute, ("mail.send", "mail", "succeeded")): mail,
        (minute, ("mail.send", "mail", "dead")): failed,
        (minute - 120, ("sync.run", "slow", "succeeded")): Tally(7),
    }
    heartbeats.report(ledger, "w1", tallies=tallies)


def test_stats_prints_a_line_for_each_kind_or_queue_and_one_for_all(
    penstock: Callable[..., Any], ledger: Database
) -> None:
    fill(ledger)
    out = penstock("stats").out
    [line] = [line for line in out.splitlines() if "mail.send" in line]
    assert line.split()[:5] == ["mail.send", "40", line.split()[2], "10", "25.0%"]
    assert "sync.run" not in out
    day = penstock("stats", "--since", "24h", "--by", "queue").out
    assert [line.split()[0] for line in day.splitlines() if line.split()[1:2] in (["40"], ["7"], ["47"])] == [
        "mail",
        "slow",
        "all",
    ]


def test_stats_as_json_has_figures_and_the_series(penstock: Callable[..., Any], ledger: Database) -> None:
    fill(ledger)
    values = penstock("stats", "--since", "7d", "--kind", "mail.send", "--json").json
    assert list(values["kinds"]) == ["mail.send"]
    figures = values["kinds"]["mail.send"]
    assert (figures["ended"], figures["errors"], figures["error_rate"]) == (40, 10, 0.25)
    assert figures["run"]["p95"] == pytest.approx(2, rel=0.1)
    assert sum(point["ended"] for point in values["series"]) == 40
    assert len(values["series"]) in (168, 169)


@pytest.mark.parametrize("wrong", [("--since", "soon"), ("--since", "2s"), ("--by", "tenant")])
def test_a_wrong_option_is_refused(penstock: Callable[..., Any], ledger: Database, wrong: tuple[str, str]) -> None:
    result = penstock("stats", *wrong)
    assert result.code == 2
    assert wrong[0] in result.err


def test_stats_of_nothing_says_so(penstock: Callable[..., Any], ledger: Database) -> None:
    result = penstock("stats")
    assert (result.code, result.out) == (0, "")
    assert "nothing ended in this time" in result.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00042, "0.4 ms"), (0.025, "25 ms"), (1.23, "1.2 s"), (119.0, "119 s"), (840.0, "14 min"), (11_160.0, "3.1 h")],
)
def test_durations_have_two_digits_that_count(seconds: float, text: str) -> None:
    assert short(seconds) == text
