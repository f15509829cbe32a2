from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from support.builtin.servers import Api, Target, ok, run
from support.builtin.tools import settings

from penstock.schemas.builtin.syncs import RunSync, SyncFinished
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, Permanent, Retry
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.syncs.changes import later
from penstock.workers.builtin.syncs.handler import run_sync
from penstock.workers.builtin.syncs.tables import SyncTable


def test_a_sync_saves_all_pages_on_every_database(any_target: Target, databases: Databases, api: Api):
    columns = {
        "total": {"type": "decimal", "path": "amount.total"},
        "updated_at": "datetime",
        "raw": {"type": "json", "path": ""},
    }
    configured = any_target.settings(columns=columns, updated="updated_at", updated_param="updated_since")
    first = run(any_target, databases, configured)
    assert first == SyncFinished(
        sync=any_target.name,
        pages=3,
        fetched=8,
        inserted=8,
        updated=0,
        skipped=0,
        cursor="2026-01-01T00:00:08Z",
        style="cursor",
    )
    api.records[7]["amount"] = {"total": "99.99"}
    api.records[7]["updated_at"] = "2026-01-01T00:00:09Z"
    api.add(1, note="Ünïcode ☃ 🚀")
    second = run(any_target, databases, configured)
    assert (second.pages, second.inserted, second.updated) == (1, 1, 1)
    assert api.requests[-1] == {"updated_since": "2026-01-01T00:00:08Z"}
    rows = any_target.rows("id, total, updated_at, raw")
    assert [row[0] for row in rows] == [f"o{number}" for number in range(1, 10)]
    assert [float(row[1]) for row in rows[6:]] == [7.1, 99.99, 9.1]
    assert "00:00:09" in str(rows[7][2])
    raw = rows[8][3]
    assert (raw if isinstance(raw, dict) else json.loads(raw))["note"] == "Ünïcode ☃ 🚀"


def test_a_sync_without_columns_keeps_whole_records(any_target: Target, databases: Databases, api: Api):
    api.records[0]["id"] = 17
    run(any_target, databases, any_target.settings(updated="updated_at", updated_param="updated_since"))
    row = any_target.rows("id, updated_at, record")[0]
    assert row[:2] == ("17", "2026-01-01T00:00:01Z")
    assert (row[2] if isinstance(row[2], dict) else json.loads(row[2])) == api.records[0]


def test_ids_that_differ_in_case_alone_are_different(any_target: Target, databases: Databases, api: Api):
    api.records = [{"id": "a"}, {"id": "A"}, {"id": "ä"}]
    assert run(any_target, databases).inserted == 3
    assert len(any_target.rows()) == 3


def test_a_sync_without_a_time_of_change_starts_at_the_last_page(target: Target, databases: Databases, api: Api):
    first = run(target, databases)
    assert (first.pages, first.cursor) == (3, "6")
    api.add(2)
    second = run(target, databases)
    assert [query.get("cursor") for query in api.requests] == [None, "3", "6", "6", "9"]
    assert (second.inserted, second.updated) == (2, 2)
    assert len(target.rows()) == 10


def test_an_attempt_goes_on_behind_the_last_page_saved(any_target: Target, databases: Databases, api: Api):
    def break_database() -> None:
        with any_target.engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {any_target.name} RENAME TO {any_target.name}_away"))

    api.faults = [ok({"data": api.records[:3], "meta": {"next": 3}}), break_database]
    with pytest.raises(Permanent, match=any_target.name):
        run(any_target, databases)
    with any_target.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {any_target.name}_away RENAME TO {any_target.name}"))
    assert len(any_target.rows()) == 3
    rest = run(any_target, databases)
    assert (rest.pages, rest.inserted) == (2, 5)
    assert [query.get("cursor") for query in api.requests] == [None, "3", "3", "6"]


def test_the_watermark_counts_only_once_a_pass_is_done(target: Target, databases: Databases, api: Api):
    configured = target.settings(updated="updated_at", updated_param="updated_since")
    api.records.reverse()  # the newest first
    api.faults = [ok({"data": api.records[:3], "meta": {"next": 3}}), (500, {}, b"")]
    assert isinstance(run(target, databases, configured), Retry)
    done = run(target, databases, configured)
    assert api.requests[2] == {"cursor": "3"}
    assert (done.inserted, done.cursor) == (5, "2026-01-01T00:00:08Z")
    assert len(target.rows()) == 8


def test_full_begins_with_the_first_record_but_not_twice_for_one_job(target: Target, databases: Databases, api: Api):
    configured = target.settings(updated="updated_at", updated_param="updated_since")
    run(target, databases, configured)
    ctx = Context(job_id=new_id())
    api.faults = [ok({"data": api.records[:3], "meta": {"next": 3}}), (500, {}, b"")]
    assert isinstance(run(target, databases, configured, ctx, full=True), Retry)
    done = run(target, databases, configured, ctx, full=True)
    assert api.requests[3:] == [{}, {"cursor": "3"}, {"cursor": "3"}, {"cursor": "6"}]
    assert (done.updated, done.inserted) == (5, 0)
    assert done.cursor == "2026-01-01T00:00:08Z"


def test_concurrent_runs_of_a_sync_do_not_mix(any_target: Target, databases: Databases, api: Api):
    both = threading.Barrier(2)
    outcomes: list[Any] = []

    def one() -> None:
        outcomes.append(run(any_target, databases))

    run(any_target, databases)
    api.add(2)
    api.faults = [lambda: both.wait(30) and None, lambda: both.wait(30) and None]  # both have read the position
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Snooze", "SyncFinished"]
    assert len(any_target.rows()) == 10


BAD_PAGES = [
    ([], "no list at items"),
    ({"data": {}}, "no list at items"),
    ({"data": [], "meta": {"next": {"a": 1}}}, "no text or number at next_cursor"),
    ({"data": [], "meta": {"next": True}}, "no text or number at next_cursor"),
    ({"data": ["x"]}, "record number 1 of the page: expected a JSON object"),
    ({"data": [{"name": "no id"}]}, "no text or whole number at id"),
    ({"data": [{"id": None}]}, "no text or whole number at id"),
    ({"data": [{"id": True}]}, "no text or whole number at id"),
    ({"data": [{"id": "x" * 192}]}, "more than 191 letters"),
    ({"data": [{"id": "a\0b"}]}, "NUL"),
    ({"data": [{"id": "\ud800"}]}, "not valid Unicode"),
    ({"data": [{"id": "x", "count": "many"}]}, "record id 'x': column 'count': expected int"),
    ({"data": [{"id": "x", "count": 2**64}]}, "expected int"),
    ({"data": [{"id": "x", "name": {"a": 1}}]}, "expected str, got a dict"),
    ({"data": [{"id": "x", "name": "\0"}]}, "NUL"),
]


@pytest.mark.parametrize(("document", "expected"), BAD_PAGES)
def test_a_page_that_does_not_fit_is_permanent_and_saves_nothing(
    target: Target, databases: Databases, api: Api, document: object, expected: str
):
    configured = target.settings(columns={"count": "int", "name": "str"})
    api.faults = [ok(document)]
    with pytest.raises(Permanent, match=expected):
        run(target, databases, configured)
    assert target.rows() == []
    assert run(target, databases, configured).pages == 3


def test_bad_records_are_left_out_and_counted_if_so_asked(target: Target, databases: Databases, api: Api):
    api.faults = [ok({"data": [{"id": 1, "n": 1}, {"id": 2, "n": "x"}, 7, {"id": 1, "n": 3}], "meta": {}})]
    result = run(target, databases, target.settings(columns={"id": "int", "n": "int"}, on_bad_record="skip"))
    assert (result.fetched, result.inserted, result.skipped) == (4, 1, 3)
    assert target.rows("id, n") == [(1, 3)]


def test_a_table_that_does_not_fit_is_permanent_and_named(any_target: Target, databases: Databases, api: Api):
    configured = any_target.settings(columns={"total": "decimal"})
    with any_target.engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {any_target.name} (id VARCHAR(100))"))
    with pytest.raises(Permanent, match="has no column 'total'"):
        run(any_target, databases, configured)
    with any_target.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {any_target.name} ADD COLUMN total NUMERIC(10,2)"))
    with pytest.raises(Permanent, match="needs a primary key or unique index on 'id'"):
        run(any_target, databases, configured)
    with any_target.engine.begin() as connection:
        connection.execute(text(f"CREATE UNIQUE INDEX {any_target.name}_id ON {any_target.name} (id)"))
    assert run(any_target, databases, configured).inserted == 8


def test_a_constraint_of_the_users_own_is_permanent(any_target: Target, databases: Databases, api: Api):
    with any_target.engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {any_target.name} (id VARCHAR(100) PRIMARY KEY, note INTEGER NOT NULL)"))
    with pytest.raises(Permanent, match=any_target.name):
        run(any_target, databases, any_target.settings(columns={"note": "int"}))
    assert any_target.rows() == []


def test_writing_a_page_does_not_block_other_coroutines(
    target: Target, databases: Databases, monkeypatch: pytest.MonkeyPatch
):
    ticked, original = threading.Event(), SyncTable.save

    def slow(self: SyncTable, *arguments: Any, **options: Any) -> Any:
        assert ticked.wait(30)  # would never be set if the loop were blocked
        return original(self, *arguments, **options)

    async def both() -> Any:
        task = asyncio.create_task(
            run_sync(RunSync(sync=target.name), Context(job_id=new_id()), databases, target.settings())
        )
        while not ticked.is_set():
            await asyncio.sleep(0.01)
            if task.done():
                break
            if len(target.api.requests) == 1:
                ticked.set()
        return await task

    monkeypatch.setattr(SyncTable, "save", slow)
    assert asyncio.run(both()).pages == 3


def test_an_unknown_sync_is_permanent_and_names_those_that_there_are(target: Target, databases: Databases):
    with pytest.raises(Permanent, match=f"no sync 'x' in penstock.toml; there is: {target.name}"):
        asyncio.run(run_sync(RunSync(sync="x"), Context(job_id="1"), databases, target.settings()))


@pytest.mark.parametrize(
    ("sync", "expected"),
    [
        ({"url": "ftp://x"}, "http"),
        ({"url": "orders"}, "http"),
        ({"table": "orders; DROP TABLE x"}, "a table is letters"),
        ({"table": "penstock_jobs"}, "Penstock's own"),
        ({"columns": {"a b": "str"}}, "must be letters"),
        ({"columns": {"a": "text"}}, "Input should be"),
        ({"columns": {"id": "float"}}, "column 'id'"),
        ({"updated": "updated_at"}, "belong together"),
    ],
)
def test_a_sync_described_wrongly_is_refused_with_the_settings(sync: dict[str, Any], expected: str):
    with pytest.raises(ValidationError, match=expected):
        settings(syncs={"x": {"url": "http://x.example", "table": "x", **sync}})


def test_changes_are_compared_as_what_they_are():
    assert later("9", "10") == "10"
    assert later("2026-01-01T10:00:00+02:00", "2026-01-01T09:00:00Z") == "2026-01-01T09:00:00Z"
    assert later("abc", "abd") == "abd"
    assert later(None, "a") == later("a", None) == "a"


@pytest.mark.parametrize("odd", ["\0", "\ud800", "🚀" * 30_000, [[[]]], 10**400, 1e308])
def test_odd_values_in_a_whole_record_are_kept_or_refused_by_name(
    any_target: Target, databases: Databases, api: Api, odd: object
):
    api.records = [{"id": "x", "odd": odd}]
    try:
        assert run(any_target, databases).inserted == 1
    except Permanent as error:
        assert any_target.name in str(error)  # noqa: PT017  # either is right, by database
    api.records = [{"id": "x", "odd": "mended"}]
    assert run(any_target, databases).fetched == 1


def test_a_table_of_a_tenant_is_made_on_every_database(any_target: Target, databases: Databases, api: Api):
    table = f"{any_target.name}_{{tenant}}"
    configured = any_target.settings(url=f"{api.url}?of={{tenant}}", table=table)
    for tenant in ("a-b", "a_b"):
        ctx = Context(job_id=new_id(), tenant=tenant)
        assert run(any_target, databases, configured, ctx).inserted == 8
        assert api.requests[-1]["of"] == tenant
    with any_target.engine.connect() as connection:
        quoted = connection.dialect.identifier_preparer.quote(f"{any_target.name}_a-b")
        assert connection.execute(text(f"SELECT COUNT(*) FROM {quoted}")).scalar() == 8


def test_a_name_that_the_database_would_cut_is_refused(target: Target, databases: Databases, api: Api):
    configured = target.settings(url=f"{api.url}?of={{tenant}}", table=f"{target.name}_{{tenant}}")
    with pytest.raises(Permanent, match="more than 63 letters"):
        run(target, databases, configured, Context(job_id=new_id(), tenant="a" * 60))
