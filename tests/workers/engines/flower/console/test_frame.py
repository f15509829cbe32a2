"""The frame of all pages of the console: navigation, JSON, errors, ticks, roles."""

from __future__ import annotations

import hashlib
import http.client
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flower
import pytest
from served import Flower
from support.polling import until

from penstock.ledger.sql.database import Database

THEIR_NAVIGATION = "2c0d5ff17f86a62e30b4ee8191245f4d6bcf808f8ff078f8d3d684edefa04949"
"""SHA-256 of Flower's navbar.html, of which ours is a changed copy. Another one: compare both, and carry over."""


def test_the_copied_template_of_flowers_is_the_one_that_was_copied() -> None:
    theirs = Path(flower.__file__).parent / "templates" / "navbar.html"
    assert hashlib.sha256(theirs.read_bytes()).hexdigest() == THEIR_NAVIGATION


def test_a_page_is_html_and_below_the_api_it_is_json(console: Flower) -> None:
    html = console.get("deadletters")
    assert "No dead letter waits" in html
    assert console.get("api/penstock/deadletters") == {"groups": []}


def test_a_prefix_goes_before_everything(start_console: Callable[..., Flower]) -> None:
    console = start_console(FLOWER_URL_PREFIX="tools/flower")
    html = console.get("tools/flower/deadletters")
    assert 'href="/tools/flower/deadletters"' in html
    assert "/tools/flower/assets/console.css?v=" in html
    assert console.get("tools/flower/api/penstock/deadletters") == {"groups": []}
    assert 'data-stream="/tools/flower/api/penstock/live"' in html
    assert console.get("deadletters") == 404


def test_flowers_own_pages_have_the_navigation_of_ours(console: Flower) -> None:
    html = console.get("broker")
    assert 'href="/deadletters"' in html
    assert "<span>Penstock</span>" in html


@pytest.mark.parametrize(("address", "words"), [("deadletters?quue=a", "quue: unknown")])
def test_a_wrong_parameter_is_refused_by_name(console: Flower, address: str, words: str) -> None:
    status, body = _answer(console, f"/api/penstock/{address}")
    assert status == 400
    assert words in body
    status, body = _answer(console, f"/{address}")
    assert status == 400
    assert words in body
    assert "<nav" in body


def test_a_wrong_login_sees_nothing(console: Flower) -> None:
    for path in ("deadletters", "api/penstock/deadletters", "api/penstock/live"):
        assert console.get(path, "op:wrong") == 401
        assert console.get(path, "") == 401


def test_a_ledger_that_is_away_is_said_and_the_page_comes_back(
    start_console: Callable[..., Flower], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'later' / 'ledger.db'}"
    console = start_console(PENSTOCK_DATABASE_URL=url)
    status, body = _answer(console, "/deadletters")
    assert status == 503
    assert "comes back by itself" in body
    from support.ledgers import set_up

    (tmp_path / "later").mkdir(exist_ok=True)
    set_up(url)
    until(lambda: "No dead letter waits" in str(console.get("deadletters")), "the page")


def test_the_stream_ticks(console: Flower) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=60)
    connection.request("GET", "/api/penstock/live", headers=_login())
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = [answer.readline().decode().strip() for _ in range(8)]
    assert lines.count("event: tick") == 2, lines
    connection.close()


def test_a_page_refreshes_itself_and_keeps_what_a_person_types(open_page: Callable[..., Any], ledger: Database) -> None:
    from support.ledgers import empty  # noqa: F401

    from penstock.ledger.transitions import bury  # noqa: F401

    page = open_page("deadletters")
    page.get_by_label("Kind").fill("half a wo")
    page.wait_for_function("document.getElementById('console-live-text').textContent === 'Live'", timeout=60_000)
    assert page.get_by_label("Kind").input_value() == "half a wo"


def _login() -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(b"op:secret").decode()}


def _answer(console: Flower, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=60)
    try:
        connection.request("GET", path, headers=_login())
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
