"""Syncs never replace newer data with older data, and report records that are not as expected."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from support.builtin.paged_api import PagedApi
from support.builtin.servers import Target, ok, run

from penstock.schemas.builtin.syncs import RunSync
from penstock.workers import Permanent, Retry
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.syncs.changes import is_ahead, later, start_of_next

UPDATED = {"updated": "at", "updated_param": "since"}
COLUMNS = {"at": "datetime", "name": "str"}
NEW, OLD, MID = "2026-02-02T00:00:00Z", "2026-02-01T00:00:00+02:00", "2026-02-01T12:00:00Z"


def page(*records: dict[str, Any], more: object = None) -> Any:
    return ok({"data": list(records), "meta": {"next": more}})


@pytest.mark.parametrize("columns", [COLUMNS, {}], ids=["columns", "whole"])
def test_the_newest_copy_of_a_record_counts_in_a_page_and_between_pages(
    any_target: Target, databases: Databases, api: PagedApi, columns: dict[str, str]
):
    sync = any_target.settings(columns=columns, **UPDATED)
    api.faults = [
        page({"id": "a", "at": NEW, "name": "new"}, {"id": "a", "at": OLD, "name": "old"}, more="2"),
        page({"id": "a", "at": MID, "name": "mid"}, {"id": "b", "at": OLD, "name": "b"}),
    ]
    result = run(any_target, databases, sync)
    assert (result.inserted, result.updated, result.skipped, result.older) == (2, 0, 1, 1)
    column = "name" if columns else "record"
    values = [str(row[1]) for row in any_target.rows(f"id, {column}")]
    assert ["new" in values[0], "old" in values[0], "mid" in values[0]] == [True, False, False]


def test_a_field_that_is_absent_keeps_its_value_and_one_that_is_null_clears_it(
    any_target: Target, databases: Databases, api: PagedApi
):
    sync = any_target.settings(columns={**COLUMNS, "note": {"type": "str", "absent": "null"}}, **UPDATED)
    api.faults = [page(*({"id": key, "at": OLD, "name": key, "note": "x"} for key in "abc"))]
    run(any_target, databases, sync)
    renamed = {"id": "a", "at": NEW, "title": "A"}
    api.faults = [page(renamed, {"id": "b", "at": NEW, "name": None}, {"id": "c", "at": NEW, "name": "C"})]
    result = run(any_target, databases, sync)
    assert (result.missing, result.new_fields) == (["name"], ["title"])
    assert any_target.rows("id, name, note") == [("a", "a", None), ("b", None, None), ("c", "C", None)]


@pytest.mark.parametrize("record", [{"id": "a", "name": "x", "extra": 1}, {"id": "a"}])
def test_a_frozen_contract_fails_on_fields_that_are_new_or_missing(
    target: Target, databases: Databases, api: PagedApi, record: dict[str, Any]
):
    api.faults = [page(record)]
    with pytest.raises(Permanent, match="contract = 'freeze'"):
        run(target, databases, target.settings(columns={"name": "str"}, contract="freeze"))
    assert target.rows() == []


def test_a_record_from_the_future_hides_no_later_change(any_target: Target, databases: Databases, api: PagedApi):
    sync = any_target.settings(columns=COLUMNS, **UPDATED)
    api.faults = [page({"id": "a", "at": "9999-01-01T00:00:00Z", "name": "far"}, {"id": "b", "at": OLD, "name": "b"})]
    first = run(any_target, databases, sync)
    assert (first.ahead, first.cursor) == (1, OLD)
    api.faults = [page({"id": "a", "at": NEW, "name": "now"})]
    assert run(any_target, databases, sync).updated == 1
    assert api.requests[-1]["since"] == OLD
    assert any_target.rows("id, name") == [("a", "now"), ("b", "b")]


def test_a_start_in_the_future_of_an_earlier_version_is_dropped(target: Target, databases: Databases, api: PagedApi):
    sync = target.settings(**UPDATED)
    run(target, databases, sync)
    kept = json.dumps({"page": None, "since": "9999-01-01T00:00:00Z", "seen": None, "job": None, "later": 1})
    with target.engine.begin() as connection:
        connection.execute(
            text("UPDATE penstock_sync_cursors SET cursor = :c WHERE name = :n"), {"c": kept, "n": target.name}
        )
    api.requests.clear()
    run(target, databases, sync)
    assert "since" not in api.requests[0]


def test_a_run_asks_for_changes_since_a_while_before_the_greatest_and_up_to_its_start(
    target: Target, databases: Databases, api: PagedApi
):
    sync = target.settings(lookback="1h", updated_until_param="until", **UPDATED)
    api.faults = [page({"id": "a", "at": NEW})]
    before = datetime.now(UTC) - timedelta(seconds=2)
    assert run(target, databases, sync).cursor == NEW
    api.faults = [page()]
    run(target, databases, sync)
    assert api.requests[1]["since"] == "2026-02-01T23:00:00Z"
    assert before <= datetime.fromisoformat(api.requests[0]["until"]) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("change", "unit", "expected"),
    [
        ("2026-02-02T00:00:00Z", None, "2026-02-01T23:55:00Z"),
        ("2026-02-02T00:00:00.120Z", None, "2026-02-01T23:55:00.120Z"),
        ("2026-02-02 00:00:00+02:00", None, "2026-02-01 23:55:00+02:00"),
        ("2026-02-02", None, "2026-02-01"),
        ("1770000000", "seconds", "1769999700"),
        ("1770000000000", "milliseconds", "1769999700000"),
        ("1770000000", None, "1770000000"),
        ("20260202", None, "20260202"),
        ("rev-7", None, "rev-7"),
    ],
)
def test_the_start_of_the_next_run_is_spelled_as_the_server_spells_times(change: str, unit: str | None, expected: str):
    assert start_of_next(change, timedelta(minutes=5), unit) == expected


def test_changes_are_numbers_of_any_size_and_times_only_with_a_unit():
    assert later("9007199254740993", "9007199254740992") == "9007199254740993"
    now = datetime.now(UTC)
    assert is_ahead("253370764800", now, "seconds")
    assert not is_ahead("253370764800", now, None)
    assert is_ahead("1" * 30, now, "milliseconds")


def test_decimals_are_exact_in_columns_and_documents(any_target: Target, databases: Databases, api: PagedApi):
    columns = {"total": "decimal", "raw": {"type": "json", "path": ""}}
    number = "1234567.8901234" if any_target.engine.dialect.name == "sqlite" else "12345678901234567890.0123456789"
    body = f'{{"data": [{{"id": "a", "total": {number}, "rate": 0.10000000000000000001}}]}}'.encode()
    api.faults = [(200, {}, body)]
    run(any_target, databases, any_target.settings(columns=columns))
    kind = "TEXT" if any_target.engine.dialect.name != "mysql" else "CHAR"
    row = any_target.rows(f"id, total, CAST(raw AS {kind})")[0]
    assert Decimal(str(row[1])) == Decimal(number)
    assert "0.10000000000000000001" in row[2]


@pytest.mark.parametrize("number", ["0.12345678901", "12345678901234567890.01"])
def test_a_decimal_that_the_column_would_round_is_refused(
    target: Target, databases: Databases, api: PagedApi, number: str
):
    api.faults = [(200, {}, f'{{"data": [{{"id": "a", "total": {number}}}]}}'.encode())]
    with pytest.raises(Permanent, match="declare"):
        run(target, databases, target.settings(columns={"total": "decimal"}))


def test_bad_records_are_kept_once_with_their_reason(any_target: Target, databases: Databases, api: PagedApi):
    sync = any_target.settings(columns={"n": "int"}, on_bad_record="keep")
    for _ in range(2):
        api.faults = [page({"id": "a", "n": "x\0"}, {"n": 1}, {"id": "c", "n": 3})]
        result = run(any_target, databases, sync)
        assert (result.fetched, result.skipped) == (3, 2)
    with any_target.engine.begin() as connection:
        query = text(
            "SELECT record_id, reason, record FROM penstock_sync_bad_records WHERE sync = :n ORDER BY record_id"
        )
        kept = connection.execute(query, {"n": any_target.name}).all()
        connection.execute(text("DELETE FROM penstock_sync_bad_records WHERE sync = :n"), {"n": any_target.name})
    assert sorted(str(row[0]) for row in kept) == ["None", "a"]
    assert any("column 'n': expected int" in row[1] and json.loads(row[2])["id"] == "a" for row in kept)
    assert any_target.rows("id, n") == [("c", 3)]


def test_tombstones_delete_rows_unless_the_row_is_newer(any_target: Target, databases: Databases, api: PagedApi):
    sync = any_target.settings(columns=COLUMNS, deleted="gone", **UPDATED)
    api.faults = [page({"id": "a", "at": OLD, "name": "a"}, {"id": "b", "at": NEW, "name": "b"})]
    run(any_target, databases, sync)
    tombs = [{"id": key, "at": MID, "gone": True} for key in "abc"]
    api.faults = [page(*tombs, {"id": "d", "at": NEW, "name": "d", "gone": False})]
    result = run(any_target, databases, sync)
    assert (result.deleted, result.older, result.inserted) == (1, 1, 1)
    assert any_target.rows("id") == [("b",), ("d",)]


def test_a_full_run_deletes_rows_that_it_has_not_met(any_target: Target, databases: Databases, api: PagedApi):
    sync = any_target.settings(columns={"amount": "json"}, delete_missing=True)
    run(any_target, databases, sync)
    del api.records[1], api.records[5]
    assert run(any_target, databases, sync).deleted == 0  # only a full run knows all
    result = run(any_target, databases, sync, full=True)
    assert (result.updated, result.deleted) == (6, 2)
    assert len(any_target.rows()) == 6
    api.faults = [page()]
    assert run(any_target, databases, sync, full=True).deleted == 0  # an empty answer proves nothing
    assert len(any_target.rows()) == 6


def test_an_outage_is_retried_for_days_and_an_error_of_the_code_is_not(target: Target, databases: Databases):
    away = target.settings(database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")
    outcome = run(target, databases, away)
    assert isinstance(outcome, Retry)
    assert "database" in outcome.reason
    policy = RunSync.__kind__.retry
    assert policy.exhausted_reason(None, 100, timedelta(hours=71)) is None
    assert policy.exhausted_reason(None, 100, timedelta(hours=73)) is not None
    assert policy.exhausted_reason(KeyError, 10, timedelta(hours=1)) is not None
