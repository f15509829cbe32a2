from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.ledgers import row_of

from penstock.config.settings import load_settings
from penstock.ledger.rows import audit
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.sql.database import Database
from penstock.schemas import Job, registry
from penstock.workers.dispatcher.schedules.declarations import read_schedules

Run = Callable[..., Any]

FILE = """\
[schedules.good]
kind = "ledger.note"
cron = "30 2 * * *"
timezone = "Europe/Berlin"
[schedules.bad]
kind = "no.such"
cron = "* * * * *"
[schedules.zone]
kind = "ledger.note"
cron = "* * * * *"
timezone = "Mars/Base"
"""


@pytest.fixture
def file(workplace: Path) -> Path:
    path = workplace / "penstock.toml"
    path.write_text(FILE)
    return path


def test_schedules_are_listed_with_their_next_times(penstock: Run, ledger: Database, workplace: Path) -> None:
    assert penstock("schedules", "list", "--json").json == []
    (workplace / "penstock.toml").write_text(FILE)
    rows = {row["name"]: row for row in penstock("schedules", "list", "--json").json}
    assert (rows["good"]["error"], rows["good"]["state"], rows["good"]["when"]) == (None, "unread", "30 2 * * *")
    assert "penstock.toml:6: schedule 'bad'" in rows["bad"]["error"]
    assert "penstock.toml:11: schedule 'zone': timezone: unknown time zone 'Mars/Base'" in rows["zone"]["error"]
    times = penstock("schedules", "next", "good", "-n", "3", "--json").json
    assert len(times) == 3
    assert all("T02:30:00" in time["at"] or "T03:00:00" in time["at"] for time in times)
    assert penstock("schedules", "next").code == 0
    assert penstock("schedules", "next", "none").code == 2
    declare_schedules(ledger, read_schedules(load_settings()))
    rows = {row["name"]: row for row in penstock("schedules", "list", "--json").json}
    assert {name: row["state"] for name, row in rows.items()} == {"good": "active", "bad": "wrong", "zone": "wrong"}
    assert "penstock.toml:11" in rows["zone"]["error"]


def test_a_schedule_is_added_shown_run_paused_resumed_and_removed(penstock: Run, ledger: Database) -> None:
    added = penstock(
        "schedules", "add", "nightly", "--kind", "ledger.note", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin",
        "--payload", '{"text": "good night"}', "--overlap", "queue", "--jitter", "5m", "--start", "2098-01-01",
        "--until", "2099-01-01", "--queue", "nights", "--priority", "low", "--expires-in", "2h",
    )  # fmt: skip
    assert (added.code, added.out) == (0, "nightly added; next at 2098-01-01T03:00:00+01:00\n")
    again = penstock("schedules", "add", "nightly", "--kind", "ledger.note", "--every", "1h")
    assert (again.code, "there is a schedule 'nightly' already" in again.err) == (1, True)

    job_id = penstock("schedules", "run", "nightly").out.strip()
    row = row_of(ledger, job_id)
    assert (row.payload, row.queue, row.priority) == ('{"text": "good night"}', "nights", "low")
    assert row.expires_at is not None
    output = penstock("schedules", "show", "nightly", "--json").json
    assert (output["source"], output["state"], output["overlap"]) == ("made", "active", "queue")
    assert output["payload"] == {"text": "good night"}
    assert len(output["next"]) == 5
    [run] = output["runs"]
    assert (run["cause"], run["job_id"], run["state"]) == ("run", job_id, "scheduled")
    assert job_id in penstock("schedules", "show", "nightly").out

    assert penstock("schedules", "pause", "nightly").out == "nightly paused\n"
    assert penstock("schedules", "pause", "nightly", "none").code == 1
    [row] = penstock("schedules", "list", "--json").json
    assert (row["state"], row["next_at"]) == ("paused", None)
    assert penstock("schedules", "resume", "nightly", "--actor", "ada").out.startswith("nightly resumed; next at 20")
    assert penstock("schedules", "remove", "nightly").out == "nightly removed\n"
    assert penstock("schedules", "list", "--json").json == []
    acts = [(act.act, act.subject) for act in audit.find(ledger, subject="nightly")]
    assert acts == [(act, "nightly") for act in ("remove", "resume", "pause", "run", "add")]
    assert [act.actor for act in audit.find(ledger, actor="ada")] == ["ada"]


def test_a_schedule_whose_kind_only_dispatchers_import_is_not_called_wrong(penstock: Run, ledger: Database) -> None:
    class Theirs(Job, kind="schedules.theirs"): ...

    try:
        assert penstock("schedules", "add", "theirs", "--kind", "schedules.theirs", "--every", "1h").code == 0
    finally:
        registry.discard(Theirs.kind())
    output = penstock("schedules", "show", "theirs", "--json").json
    assert (output["state"], output["error"]) == ("active", None)


def test_a_span_is_backfilled_in_the_zone_of_the_schedule(penstock: Run, ledger: Database) -> None:
    add = ["schedules", "add", "daily", "--kind", "ledger.note", "--time-field", "text", "--overlap", "allow"]
    assert penstock(*add, "--cron", "30 0 * * *", "--timezone", "Asia/Tokyo").code == 0
    span = ["schedules", "backfill", "daily", "--from", "2026-03-01", "--until", "2026-03-04"]
    planned = penstock(*span, "--dry-run", "--json").json
    assert [time["job_id"] for time in planned] == [None] * 3
    times = penstock(*span, "--json").json
    assert [time["at"] for time in times] == [f"2026-02-{day}T15:30:00+00:00" for day in ("28",)] + [
        f"2026-03-{day}T15:30:00+00:00" for day in ("01", "02")
    ]
    texts = [row_of(ledger, time["job_id"]).payload for time in times]
    assert texts == [f'{{"text": "2026-03-{day}T00:30:00+09:00"}}' for day in ("01", "02", "03")]
    assert {time["skipped"] for time in penstock(*span, "--json").json} == {"fired"}
    for wrong in (("--from", "2999-01-01"), ("--from", "then"), ("--from", "2026-03-01", "--until", "2026-02-01")):
        assert penstock("schedules", "backfill", "daily", *wrong).code == 2
    much = penstock("schedules", "backfill", "daily", "--from", "2026-01-01", "--until", "2026-03-01", "--limit", "10")
    assert (much.code, "more than 10 times" in much.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--cron", "0 0 30 2 *"], "cron '0 0 30 2 *'"),
        (["--cron", "@daily", "--timezone", "Mars/Base"], "unknown time zone"),
        (["--cron", "@daily", "--payload", '{"colour": 1}'], "colour: Extra inputs"),
        (["--cron", "@daily", "--payload", "{"], "not JSON"),
        (["--cron", "@daily", "--every", "1h"], "give one of cron, every and at"),
        (["--at", "2020-01-01T00:00"], "its only time has passed"),
        (["--cron", "@daily", "--priority", "urgent"], "priority: Input should be 'high', 'normal' or 'low'"),
        (["--cron", "@daily", "--expires-in", "0s"], "expires_in: must be more than 0s"),
        (["--cron", "@daily", "--kind", "no.such"], "no imported module defines kind 'no.such'"),
    ],
)
def test_an_invalid_schedule_is_refused(penstock: Run, ledger: Database, options: list[str], expected: str) -> None:
    result = penstock("schedules", "add", "wrong", "--kind", "ledger.note", *options)
    assert result.code == 2
    assert expected in " ".join(result.err.replace("│", " ").split())
    assert penstock("schedules", "list", "--json").json == []


def test_a_schedule_of_the_file_is_not_removed_by_hand(penstock: Run, ledger: Database, file: Path) -> None:
    declare_schedules(ledger, read_schedules(load_settings()))
    result = penstock("schedules", "remove", "good")
    assert (result.code, "stands in penstock.toml" in result.err) == (1, True)


def test_a_rule_is_previewed_with_the_changes_of_the_clock(penstock: Run) -> None:
    words = ["schedules", "preview", "30 2 * * *", "--timezone", "Europe/Berlin", "--from", "2026-03-27", "-n", "3"]
    rows = penstock(*words, "--json").json
    assert [row["at"] for row in rows[:3]] == [
        "2026-03-27T02:30:00+01:00",
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
    ]
    assert rows[2]["clock"] == "clock goes forward before it: 2026-03-29 02:00 becomes 03:00"
    # And those of the autumn, far beyond the three.
    assert [(row["at"], row["clock"]) for row in rows[3:]] == [
        ("2026-10-25T02:30:00+02:00", "the first of two 02:30"),
        ("2026-10-26T02:30:00+01:00", "clock goes back before it: 2026-10-25 03:00 becomes 02:00"),
    ]
    assert "clock goes forward" in penstock(*words).out

    rows = penstock(
        "schedules", "preview", "0 * * * *", "--timezone", "Europe/Berlin", "--from", "2026-10-24", "--json"
    )
    clocks = {row["at"]: row["clock"] for row in rows.json}
    assert clocks["2026-10-25T02:00:00+01:00"].startswith("clock goes back before it: 2026-10-25 03:00 becomes 02:00")
    # Where it fires nowhere near the change, the times on either side are shown.
    words = [
        "schedules",
        "preview",
        "0 9 * * mon-fri",
        "--timezone",
        "Europe/Berlin",
        "--from",
        "2026-03-01",
        "-n",
        "1",
    ]
    assert [(row["at"], bool(row["clock"])) for row in penstock(*words, "--json").json] == [
        ("2026-03-02T09:00:00+01:00", False),
        ("2026-03-27T09:00:00+01:00", False),
        ("2026-03-30T09:00:00+02:00", True),
        ("2026-10-23T09:00:00+02:00", False),
        ("2026-10-26T09:00:00+01:00", True),
    ]
    assert len(penstock("schedules", "preview", "--every", "90m", "--json").json) == 10
    short = ["schedules", "preview", "@daily", "--start", "2099-01-01", "--until", "2099-01-03", "--json"]
    assert [time["at"] for time in penstock(*short).json] == [f"2099-01-0{day}T00:00:00+00:00" for day in (1, 2)]
    assert penstock("schedules", "preview", "0 0 30 2 *").code == 2
    assert penstock("schedules", "preview", "@daily", "--timezone", "Mars").code == 2
    holidays = ["--calendar", "DE", "--closed", "before", "--from", "2024-03-01", "-n", "1", "--json"]
    assert penstock("schedules", "preview", "0 18 L * *", *holidays).json[0]["at"] == "2024-03-28T18:00:00+00:00"


def test_schedules_are_listed_without_their_state_while_the_ledger_is_unavailable(
    penstock: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    result = penstock("schedules", "list", "--json")
    assert {row["name"] for row in result.json} == {"good", "bad", "zone"}
    assert "only the schedules of penstock.toml and the code are shown" in result.err


def test_last_runs_are_the_newest_first(penstock: Run, ledger: Database) -> None:
    penstock("schedules", "add", "often", "--kind", "ledger.note", "--every", "1m")
    until = datetime.now(UTC)
    period = ("--from", (until - timedelta(minutes=5)).isoformat(), "--until", until.isoformat())
    backfilled = penstock("schedules", "backfill", "often", *period, "--json").json
    assert len(backfilled) == 5
    runs = penstock("schedules", "show", "often", "--limit", "2", "--json").json["runs"]
    assert [run["job_id"] for run in runs] == [time["job_id"] for time in backfilled[:-3:-1]]
    assert [run["cause"] for run in runs] == ["backfill"] * 2


def test_the_doctor_names_wrong_schedules(penstock: Run, ledger: Database, file: Path) -> None:
    checks = {check["check"]: check for check in penstock("doctor", "--json").json}
    assert not checks["schedules"]["ok"]
    assert "penstock.toml:6" in checks["schedules"]["detail"]
    assert "penstock.toml:11" in checks["schedules"]["detail"]
    assert checks["config"]["ok"]
