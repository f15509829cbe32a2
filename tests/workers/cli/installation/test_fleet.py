"""`penstock workers`, `penstock alerts` and `penstock settings`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from support.ledgers import Note, claimed, message, start_worker

from penstock.config.settings import load_settings
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.workers.dispatcher.fleet.alerts import Alerts

Penstock = Callable[..., Any]
ALERT = '[alerts.idle]\nwhen = "no_dispatcher"\nover = "0s"\n'


def test_workers_are_listed_with_what_they_run(penstock: Penstock, ledger: Database) -> None:
    start_worker(ledger, "w1", lease=timedelta(hours=1))
    start_worker(ledger, "gone", lease=timedelta(minutes=-1))
    claim = claimed(ledger, message(Note()))
    claimed(ledger, message(Note()), worker="gone")
    gone, alive = penstock("workers", "list", "--json").json
    assert (gone["name"], gone["state"], gone["running"], gone["abandoned"]) == ("gone", "dead", [], 1)
    assert (alive["name"], alive["state"], [job["id"] for job in alive["running"]]) == (
        "w1",
        "running",
        [claim.message.id],
    )
    table = penstock("workers", "list").out
    assert "ledger.note" in table
    assert "1 jobs, which others take over" in table
    assert [worker["name"] for worker in penstock("workers", "list", "--since", "5s", "--json").json] == ["w1"]


def test_workers_are_drained_and_stopped_by_someone(penstock: Penstock, ledger: Database) -> None:
    start_worker(ledger, "w1", lease=timedelta(hours=1))
    drained = penstock("workers", "drain", "w1", "--actor", "ann", "--reason", "deploy")
    assert (drained.code, "may start another one" in drained.out) == (0, True)
    assert penstock("workers", "drain", "w1").code == 1
    assert penstock("workers", "stop", "w1", "--actor", "bob").code == 0
    assert penstock("workers", "stop", "w2").code == 1
    acts = [(act.actor, act.act, act.subject, act.detail["reason"]) for act in audit.find(ledger)]
    assert acts == [("bob", "stop", "w1", None), ("ann", "drain", "w1", "deploy")]


def test_alerts_are_listed_and_silenced(penstock: Penstock, ledger: Database, workplace: Path) -> None:
    (workplace / "penstock.toml").write_text(ALERT)
    [quiet] = penstock("alerts", "list", "--json").json
    assert (quiet["alert"], quiet["state"]) == ("idle", "ok")
    [judge] = Alerts.open(load_settings(), ledger, threading.Event())
    judge.run_once()
    judge.close()
    assert "firing" in penstock("alerts", "list").out
    assert [firing["alert"] for firing in penstock("alerts", "list", "--history", "--json").json] == ["idle"]
    silenced = penstock("alerts", "silence", "idle", "--for", "2h", "--reason", "deploy", "--actor", "ann")
    assert (silenced.code, "silenced until" in silenced.out) == (0, True)
    [firing] = penstock("alerts", "list", "--json").json
    assert (firing["silenced_by"], firing["silence_reason"]) == ("ann", "deploy")
    wrong = penstock("alerts", "silence", "idel", "--for", "2h")
    assert (wrong.code, "did you mean 'idle'?" in wrong.err) == (1, True)
    assert penstock("alerts", "silence", "idle").code == 2
    assert penstock("alerts", "unsilence", "idle").code == 0
    assert penstock("alerts", "unsilence", "idle").code == 1


def test_settings_are_listed_with_their_sources(penstock: Penstock, workplace: Path) -> None:
    (workplace / "penstock.toml").write_text("max_crashes = 7\n")
    rows = {row["setting"]: row for row in penstock("settings", "--json").json}
    assert (rows["max_crashes"]["value"], rows["max_crashes"]["source"]) == (7, "penstock.toml:1")
    assert rows["prefix"]["source"] == "PENSTOCK_PREFIX"
    changed = penstock("settings", "--changed").out
    assert "max_crashes" in changed
    assert "grace_seconds" not in changed
