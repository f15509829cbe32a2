"""The audit log in the browser: filters, pages, and files of what the filters let through."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit as log

HOSTILE = "<img src=x onerror=window.stolen=1>"
FORMULA = "=1+1"
PAGE = 50


@pytest.fixture
def lines(ledger: Database) -> None:
    """60 pauses by ada, of which the first was yesterday, and two cancels by bob."""

    def insert(connection: sa.Connection) -> None:
        for number in range(60):
            reason = FORMULA if number == 59 else f"reason {number}"
            audit.write(
                connection,
                actor="ada",
                act="pause",
                subject=f"queue-{number}",
                subject_kind="queue",
                detail={"reason": reason},
            )
        audit.write(connection, actor="bob", act="cancel", subject="job-7", detail={"reason": HOSTILE})
        audit.write(connection, actor="bob", act="cancel", subject=FORMULA, subject_kind="queue", count=12)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        connection.execute(sa.update(log).where(log.c.subject == "queue-0").values(at=yesterday))

    ledger.write(insert)


def rows(page: Any) -> list[list[str]]:
    """The texts of the cells."""
    texts = page.locator("tbody tr").all_inner_texts()
    return [[cell.strip() for cell in text.split("\t")] for text in texts]


def filter_by(page: Any, **values: str) -> None:
    """Fill in fields by their labels, and click on Filter."""
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    with page.expect_navigation():
        page.get_by_role("button", name="Filter").click()


def save(page: Any, label: str, folder: Path) -> str:
    """The text of a file that a link gives."""
    with page.expect_download() as waiting:
        page.get_by_role("link", name=label, exact=True).click()
    file = folder / waiting.value.suggested_filename
    waiting.value.save_as(file)
    return file.read_text()


@pytest.mark.usefixtures("lines")
def test_the_audit_log_is_filtered_by_person_act_subject_and_time(open_page: Callable[..., Any]) -> None:
    page = open_page("overview")
    page.get_by_role("button", name="More").click()
    page.get_by_role("link", name="Audit").click()
    page.get_by_role("heading", name="Who did what, the latest first").wait_for()
    assert len(rows(page)) == PAGE
    assert [row[1] for row in rows(page)[:3]] == ["bob", "bob", "ada"]
    page.get_by_role("link", name="Next page").click()
    page.get_by_role("link", name="First page").wait_for()
    assert [row[3] for row in rows(page)] == [f"queue queue-{number}" for number in range(11, -1, -1)]

    filter_by(page, Person="bob")
    assert [(row[1], row[2], row[4]) for row in rows(page)] == [("bob", "cancel", "12"), ("bob", "cancel", "1")]
    assert HOSTILE in page.locator("tbody").inner_text()
    assert page.evaluate("window.stolen") is None
    filter_by(page, Act="pause")
    page.get_by_text("Nothing that matches was done.").wait_for()
    filter_by(page, Person="", Subject="queue-7")
    assert [(row[1], row[2], row[3]) for row in rows(page)] == [("ada", "pause", "queue queue-7")]
    since = (datetime.now(UTC) - timedelta(hours=12)).strftime("%Y-%m-%dT%H:%M")
    filter_by(page, Subject="queue-0", Since="")
    assert len(rows(page)) == 1
    filter_by(page, Since=since)
    assert page.get_by_label("Since").input_value() == since
    page.get_by_text("Nothing that matches was done.").wait_for()
    filter_by(page, Since="", Until=since)
    assert len(rows(page)) == 1
    filter_by(page, Until="", Subject="", Act="")
    page.get_by_role("link", name="bob").first.click()
    page.wait_for_url("**/audit?actor=bob")
    assert len(rows(page)) == 2


@pytest.mark.usefixtures("lines")
def test_the_audit_log_is_saved_as_files(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page("audit")
    acts = [json.loads(line) for line in save(page, "JSON lines", tmp_path).splitlines()]
    assert len(acts) == 62, "all, not a page of them"
    assert (acts[0]["actor"], acts[0]["subject"], acts[0]["count"]) == ("bob", FORMULA, 12)
    assert acts[1]["detail"] == {"reason": HOSTILE}

    filter_by(page, Person="bob", Act="cancel")
    head, *cells = csv.reader(io.StringIO(save(page, "CSV", tmp_path)))
    assert head == ["id", "at", "actor", "act", "subject_kind", "subject", "count", "detail"]
    assert [row[2:7] for row in cells] == [
        ["bob", "cancel", "queue", f"'{FORMULA}", "12"],
        ["bob", "cancel", "job", "job-7", "1"],
    ]
    assert json.loads(cells[1][7]) == {"reason": HOSTILE}
    since = (datetime.now(UTC) - timedelta(hours=12)).strftime("%Y-%m-%dT%H:%M")
    filter_by(page, Person="", Act="pause", Until=since)
    acts = [json.loads(line) for line in save(page, "JSON lines", tmp_path).splitlines()]
    assert [act["subject"] for act in acts] == ["queue-0"]
