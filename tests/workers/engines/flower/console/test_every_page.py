"""Every page at three widths and in both themes: nothing overflows, and axe has no serious finding."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from console_jobs import SendInvoice
from served import Flower
from support.ledgers import claimed, end, message, start_worker

from penstock.ledger.schedules import commands
from penstock.ledger.sql.database import Database
from penstock.schemas import Outcome
from penstock.workers.engines.celery.flower.page import Page
from penstock.workers.engines.celery.flower.pages import HANDLERS

PATHS = sorted(
    handler.path for handler in HANDLERS if issubclass(handler, Page) and "(" not in handler.path and handler.template
)
HOSTILE = "<img src=x onerror=alert(1)>'\"&" + "long" * 20
SERIOUS = ("serious", "critical")


@pytest.fixture
def console(start_console: Callable[..., Flower]) -> Flower:
    return start_console("console_jobs")


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1280, "dark"), (1920, "light")])
def test_a_page_fits_and_everyone_can_read_it(
    console: Flower, ledger: Database, open_page: Callable[..., Any], width: int, theme: str
) -> None:
    """The folder that PENSTOCK_TEST_SCREENSHOTS names gets a picture of each page, for people."""
    from axe_playwright_python.sync_playwright import Axe

    _fill(ledger)
    axe, findings = Axe(), []
    pages = [*PATHS, "/jobs/" + _dead_id(console), "/deadletters/letters/" + _dead_id(console)]
    page = open_page("/", width=width, theme=theme)
    for path in pages:
        page.goto(f"http://127.0.0.1:{console.port}{path}")
        if page.get_by_text("404").count():
            continue
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        if (folder := os.environ.get("PENSTOCK_TEST_SCREENSHOTS")) is not None:
            name = path.strip("/").replace("/", "-")[:40] or "start"
            page.screenshot(path=Path(folder) / f"{name}-{width}-{theme}.png", full_page=True)
        for violation in axe.run(page).response["violations"]:
            if violation["impact"] in SERIOUS:
                nodes = [node["html"][:200] for node in violation["nodes"][:3]]
                findings.append((path, violation["id"], nodes))
    assert not findings


def _dead_id(console: Flower) -> str:
    [group] = console.get("api/penstock/deadletters")["groups"]
    return str(group["newest_id"])


def _fill(ledger: Database) -> None:
    start_worker(ledger, "w1")
    for number in range(3):
        sent = message(SendInvoice(customer=HOSTILE, amount=number), tenant=HOSTILE[:40], key=HOSTILE[:40])
        claim = claimed(ledger, sent)
        end(ledger, claim, Outcome.DEAD, error=f"ValueError: {HOSTILE}", traceback=f"Traceback\n{HOSTILE}")
    schedule = {"kind": "shop.send_invoice", "every": "90m", "payload": {"customer": "c1", "amount": 1}}
    commands.add(ledger, "often", schedule, actor="test")
