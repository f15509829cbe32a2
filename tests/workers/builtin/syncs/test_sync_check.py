"""`penstock syncs check` reads two pages and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect
from support.builtin.paged_api import PagedApi
from support.builtin.servers import Target, ok
from typer.testing import CliRunner

from penstock.workers.cli import app


@pytest.fixture
def check(target: Target, api: PagedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = tmp_path / "penstock.toml"
    config.write_text(
        f'[syncs.orders]\nurl = "{api.url}"\nitems = "data"\nnext_cursor = "meta.next"\ntable = "{target.name}"\n'
        'columns = { total = { type = "decimal", path = "amount.total" }, note = "str" }\n'
    )
    monkeypatch.setenv("PENSTOCK_CONFIG", str(config))
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", target.url)
    return lambda *arguments: CliRunner().invoke(app, ["syncs", "check", *arguments])


def test_a_check_shows_two_pages_and_writes_nothing(check: Any, target: Target, api: PagedApi):
    result = check("orders", "--json")
    assert result.exit_code == 0
    pages = json.loads(result.stdout)
    assert [(page["records"], page["rows"], page["next"]) for page in pages] == [(3, 3, "3"), (3, 3, "6")]
    assert (pages[0]["missing"], pages[0]["new_fields"]) == (["note"], ["updated_at"])
    assert pages[0]["example"] == {"id": "o1", "total": "1.10"}
    assert len(api.requests) == 2
    assert not inspect(target.engine).has_table(target.name)
    assert not inspect(target.engine).has_table("penstock_sync_cursors")


def test_a_check_fails_with_the_reason_a_run_would_fail_with(check: Any, api: PagedApi):
    api.faults = [ok({"data": [{"id": "x", "amount": {"total": "many"}}]})]
    result = check("orders")
    assert (result.exit_code, "bad record x: column 'total': expected decimal" in result.stderr) == (1, True)
    for answer, expected in [
        (ok({"data": [{"id": "x"}], "has_more": True}), "has_more: true"),
        ((503, {"Retry-After": "600"}, b""), "HTTP 503"),
    ]:
        api.faults = [answer]
        result = check("orders")
        assert (result.exit_code, expected in result.stderr) == (1, True)
    assert "no sync 'nothing'" in check("nothing").stderr
