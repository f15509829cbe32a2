"""Schedules in the console: the list, one of them, and its acts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from served import Flower

from penstock.ledger.rows import audit
from penstock.ledger.schedules import commands
from penstock.ledger.sql.database import Database

NIGHTLY = {"kind": "shop.send_invoice", "cron": "0 2 * * *", "timezone": "Europe/Berlin"}
FIELDS = {"customer": "c1", "amount": 3}


@pytest.fixture
def console(start_console: Callable[..., Flower]) -> Flower:
    return start_console("console_jobs")


def test_schedules_are_made_paused_resumed_run_filled_and_removed(
    console: Flower, ledger: Database, open_page: Callable[..., Any]
) -> None:
    result = console.send("schedules/nightly/add", {**NIGHTLY, "payload": FIELDS})
    assert result["next"][0]["at"].endswith("+01:00") or result["next"][0]["at"].endswith("+02:00")
    [row] = console.get("api/penstock/schedules")["schedules"]
    assert (row["name"], row["state"], row["source"]) == ("nightly", "active", "made")
    console.send("schedules/nightly/pause", {})
    assert console.get("api/penstock/schedules/nightly")["schedule"]["state"] == "paused"
    assert console.send("schedules/nightly/resume", {})["next_at"] is not None
    job_id = console.send("schedules/nightly/run", {})["job_id"]
    begin = (datetime.now(UTC) - timedelta(days=3)).replace(tzinfo=None).isoformat(timespec="minutes")
    dry = console.send("schedules/nightly/backfill", {"begin": begin, "dry_run": True})
    assert len(dry["times"]) == 3
    assert console.send("schedules/nightly/backfill", {"begin": begin})["message"].endswith("made 3 jobs for 3 times")
    view = console.get("api/penstock/schedules/nightly")
    assert job_id in {run["job_id"] for run in view["runs"]}
    assert len(view["runs"]) == 4
    assert len(view["clock_changes"]) > 0
    page = open_page("schedules/nightly")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Do it").click()
    page.get_by_text("Schedule nightly is paused").wait_for(timeout=60_000)
    page.get_by_role("button", name="Resume").wait_for(timeout=60_000)
    assert commands.find(ledger, "nightly").paused_at is not None
    console.send("schedules/nightly/remove", {})
    assert console.get("schedules/nightly") == 404
    acts = {act.act for act in audit.find(ledger) if act.actor == "op"}
    assert {"pause", "resume", "run", "backfill"} <= acts


def test_what_is_wrong_is_said(console: Flower) -> None:
    status, answer = console.refusal("schedules/nightly/add", {**NIGHTLY, "cron": "0 25 * * *", "payload": FIELDS})
    assert status == 400
    assert "25" in answer["error"]
    assert console.refusal("schedules/none/pause", {})[0] == 404
    preview = console.get("api/penstock/schedules-preview?cron=0+25+*+*+*")
    assert preview["times"] == []
    assert "bad hour" in preview["error"]
    assert len(console.get("api/penstock/schedules-preview?every=90m")["times"]) >= 10
