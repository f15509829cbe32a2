"""`/workers`, `/outboxes`, `/alerts` and `/settings`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from running import Running, running
from served import Flower
from sqlalchemy.orm import Session
from support.ledgers import Note, claimed, message, start_worker
from support.polling import until

from penstock.config.settings import Settings
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.producers.outbox import Outbox
from penstock.workers.dispatcher.fleet.alerts import Alerts

ALERTS = {"idle": {"when": "no_dispatcher", "over": "0s"}, "deep": {"when": "depth", "above": 5}}
HTML = "<script>window.stolen = 1</script>"


@pytest.fixture
def watched(start_console: Callable[..., Flower]) -> Flower:
    return start_console(
        PENSTOCK_ALERTS=json.dumps(ALERTS),
        PENSTOCK_FLOWER_ADMINS='["op"]',
        FLOWER_BASIC_AUTH="look:secret",
    )


def post(console: Flower, path: str, login: str = "op:secret", **body: Any) -> Any:
    return console.post(f"api/penstock/{path}", login, json.dumps(body).encode(), Content_Type="application/json")


def acts(ledger: Database) -> list[tuple[str, str, str | None]]:
    return [(act.actor, act.act, act.subject) for act in reversed(audit.find(ledger))]


def judge(ledger: Database, redis_url: str, prefix: str) -> None:
    settings = Settings(broker_url=redis_url, database_url=ledger.url, prefix=prefix, alerts=ALERTS)
    [alerts] = Alerts.open(settings, ledger, threading.Event())
    alerts.run_once()
    alerts.close()


def test_workers_are_listed_drained_and_stopped(console: Flower, ledger: Database) -> None:
    start_worker(ledger, "w1", lease=timedelta(hours=1))
    start_worker(ledger, "gone", lease=timedelta(minutes=-1))
    claim = claimed(ledger, message(Note()))
    claimed(ledger, message(Note()), worker="gone")
    listed = {worker["name"]: worker for worker in console.get("api/penstock/workers")["workers"]}
    assert [job["id"] for job in listed["w1"]["running"]] == [claim.message.id]
    assert (listed["gone"]["state"], listed["gone"]["running"], listed["gone"]["abandoned"]) == ("dead", [], 1)
    html = console.get("workers")
    assert html.count("workers/w1/stop") == 1
    assert "workers/gone/" not in html

    assert "drain" in post(console, "workers/w1/drain", reason="deploy")["message"]
    assert post(console, "workers/w1/drain") == 409
    assert post(console, "workers/nobody/stop") == 404
    assert post(console, "workers/gone/stop") == 409
    assert acts(ledger) == [("op", "drain", "w1")]
    assert "ordered to drain" in console.get("workers")


def test_the_pool_of_a_worker_grows_and_shrinks(
    start_console: Callable[..., Flower], redis_url: str, prefix: str, tmp_path: Path
) -> None:
    with running("dramatiq", redis_url, prefix, tmp_path) as worker:
        console = start_console(PENSTOCK_DATABASE_URL=worker.settings.database_url)
        assert worker.ask("ping")

        def slots(worker: Running) -> int:
            [listed] = console.get("api/penstock/workers")["workers"]
            return int(listed["concurrency"])

        assert slots(worker) == 5
        assert "grow" in post(console, f"workers/{worker.name}/pool", by=2)["message"]
        until(lambda: slots(worker) == 7, "two slots more")
        assert "shrink" in post(console, f"workers/{worker.name}/pool", by=-1)["message"]
        until(lambda: slots(worker) == 6, "a slot fewer")
        assert console.get(f"worker/{worker.name}") != 404, "Flower's own page"


def test_alerts_are_listed_and_silenced(watched: Flower, ledger: Database, redis_url: str, prefix: str) -> None:
    judge(ledger, redis_url, prefix)
    page = watched.get("api/penstock/alerts")
    assert [(alert["alert"], alert["state"]) for alert in page["alerts"]] == [("idle", "firing"), ("deep", "ok")]
    assert [firing["alert"] for firing in page["history"]] == ["idle"]
    assert "silenced until" in post(watched, "alerts/idle/silence", minutes=30, reason=HTML)["message"]
    assert post(watched, "alerts/none/silence", minutes=30) == 404
    assert post(watched, "alerts/idle/silence", minutes=0) == 400
    html = watched.get("alerts")
    assert "by op" in html
    assert HTML not in html
    [idle, _] = watched.get("api/penstock/alerts")["alerts"]
    assert (idle["silenced_by"], idle["silence_reason"]) == ("op", HTML)
    assert "not silenced" in post(watched, "alerts/idle/unsilence")["message"]
    assert post(watched, "alerts/idle/unsilence") == 409
    assert acts(ledger) == [("op", "silence", "idle"), ("op", "unsilence", "idle")]


def test_a_viewer_sees_and_does_nothing(watched: Flower, ledger: Database) -> None:
    start_worker(ledger, "w1", lease=timedelta(hours=1))
    login = "look:secret"
    for path in ("workers", "alerts"):
        html = watched.get(path, login)
        assert "data-act" not in html, path
    assert post(watched, "workers/w1/stop", login) == 403
    assert post(watched, "alerts/idle/silence", login, minutes=30) == 403
    assert watched.get("settings", login) == 403
    assert acts(ledger) == []


def test_the_backlog_of_an_outbox(start_console: Callable[..., Flower], ledger: Database, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/away/shop.db"
    console = start_console(PENSTOCK_OUTBOX_URLS=json.dumps([url]))
    with Session(ledger.engine) as session:
        Outbox().enqueue(session, Note())
        session.commit()
    own, other = console.get("api/penstock/outboxes")["outboxes"]
    assert (own["outbox"], own["jobs"], own["trouble"]) == ("ledger", 1, None)
    assert (other["jobs"], other["trouble"] is None) == (None, False)
    assert "cannot be read" in console.get("outboxes")


def test_settings_name_their_sources_and_hide_secrets(
    start_console: Callable[..., Flower], tmp_path: Path, prefix: str
) -> None:
    (tmp_path / "penstock.toml").write_text(
        'max_crashes = 7\n[hooks.ops]\nurl = "https://u:pw@x.example"\nsecret = "aGFsbG8="\n'
    )
    console = start_console(PENSTOCK_TOKEN_SECRET="abcdefghijklmnopqrstuvwxyz")
    settings = {row["name"]: row for row in console.get("api/penstock/settings")["settings"]}
    assert (settings["max_crashes"]["value"], settings["max_crashes"]["source"]) == (7, "penstock.toml:1")
    assert (settings["prefix"]["value"], settings["prefix"]["source"]) == (prefix, "PENSTOCK_PREFIX")
    assert settings["grace_seconds"]["source"] == "default"
    html = console.get("settings")
    assert "abcdefghij" not in html
    assert "aGFsbG8=" not in html
    assert "u:***@x.example" in html
    assert "grace_seconds" not in console.get("settings?changed=true")


def test_names_of_workers_are_text(open_page: Callable[..., Any], ledger: Database) -> None:
    start_worker(ledger, HTML, lease=timedelta(hours=1))
    page = open_page("workers")
    assert page.get_by_text(HTML).count() == 1
    assert page.evaluate("window.stolen") is None


def test_a_worker_is_stopped_with_a_button(open_page: Callable[..., Any], ledger: Database) -> None:
    start_worker(ledger, "w1", lease=timedelta(hours=1))
    page = open_page("workers")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Do it").click()
    page.get_by_text("ordered to stop").wait_for(timeout=60_000)
    assert acts(ledger) == [("op", "stop", "w1")]
