"""Syncs read all pages of every style, and never end with success before the last one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import ValidationError
from support.builtin.paged_api import PagedApi
from support.builtin.servers import Target, ok, run
from support.builtin.tools import settings

from penstock.workers import Permanent, Retry, Snooze
from penstock.workers.builtin.databases import Databases

QUERY = {"query": "query($after: String) { orders(after: $after) { nodes { id } } }", "variables": {"after": None}}
STYLES: dict[str, dict[str, Any]] = {
    "link": {"pages": "link"},
    "page": {"pages": "page"},
    "offset": {"pages": {"style": "offset", "total": "total"}},
    "last_id": {"pages": {"style": "last_id", "more": "has_more"}},
    "url": {"pages": "url", "next_cursor": "next"},
    "header": {"pages": {"style": "cursor", "header": "X-Cursor"}},
    "graphql": {
        "method": "POST",
        "body": QUERY,
        "items": "data.orders.nodes",
        "next_cursor": "data.orders.pageInfo.endCursor",
        "cursor_param": "variables.after",
        "pages": {"style": "cursor", "more": "data.orders.pageInfo.hasNextPage"},
    },
}


def configured(target: Target, api: PagedApi, style: str, **sync: Any) -> Any:
    return target.settings(url=f"{api.base}/{style}", **sync)


@pytest.mark.parametrize("style", STYLES)
def test_all_pages_of_each_style_are_read_in_each_run(target: Target, databases: Databases, api: PagedApi, style: str):
    sync = configured(target, api, style, **STYLES[style])
    first = run(target, databases, sync)
    assert (first.fetched, first.inserted) == (8, 8)
    assert first.style == sync.syncs[target.name].pages.style
    assert len(target.rows()) == 8
    api.add(2)
    assert run(target, databases, sync).inserted == 2
    assert len(target.rows()) == 10


@pytest.mark.parametrize("style", STYLES)
def test_an_attempt_goes_on_behind_the_last_page_in_each_style(
    any_target: Target, databases: Databases, api: PagedApi, style: str
):
    sync = configured(any_target, api, style, **STYLES[style])
    api.faults = [lambda: None, (502, {}, b"")]
    assert isinstance(run(any_target, databases, sync), Retry)
    assert len(any_target.rows()) == 3
    assert run(any_target, databases, sync).inserted == 5
    assert len(any_target.rows()) == 8


@pytest.mark.parametrize(("style", "sync", "detected"), [("link", {}, "link"), ("url", {"next_cursor": "next"}, "url")])
def test_a_style_that_answers_show_is_detected_and_reported(
    target: Target, databases: Databases, api: PagedApi, style: str, sync: dict[str, Any], detected: str
):
    if style == "url":
        api.page = 8
        api.faults = [ok({"data": api.records[:3], "next": "/url?start=3"})]
        api.page = 5
    result = run(target, databases, configured(target, api, style, **sync))
    assert (result.fetched, result.style) == (8, detected)


SIGNS = [
    ("flag", {}, "has_more: true"),
    ("pages", {}, "meta.total_pages: 3"),
    ("offset", {}, "total: 8"),
    ("url", {}, "next: a value"),
    ("link", {"pages": "single"}, "a Link header with rel=next"),
    ("link", {"pages": {"style": "cursor"}}, "a Link header with rel=next"),
    ("page", {"params": {"per_page": 3}}, "a full page of 3 records"),
    ("bare", {"items": "", "params": {"limit": 3}}, "a full page of 3 records"),
    ("orders", {"next_cursor": "meta.nxt"}, "meta.next: 3"),
    ("pages", {"pages": {"style": "offset", "param": "ofset"}}, "a page twice"),
    ("page", {"pages": {"style": "page", "param": "p"}}, "a page twice"),
]


@pytest.mark.parametrize(("style", "sync", "expected"), SIGNS)
def test_signs_of_more_pages_that_the_style_does_not_explain_fail_the_run(
    target: Target, databases: Databases, api: PagedApi, style: str, sync: dict[str, Any], expected: str
):
    with pytest.raises(Permanent, match=expected):
        run(target, databases, configured(target, api, style, **sync))


HEADERS = [{"X-Total-Count": "8"}, {"X-Total-Pages": "3"}, {"X-Next-Page": "2"}, {"X-Has-More": "true"}]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: next(iter(header)))
def test_headers_are_signs_of_more_pages_too(
    target: Target, databases: Databases, api: PagedApi, header: dict[str, str]
):
    status, headers, body = ok({"data": api.records[:3]})
    api.faults = [(status, {**headers, **header}, body)]
    with pytest.raises(Permanent, match=next(iter(header)).lower()):
        run(target, databases)
    assert target.rows() == []


def test_a_total_counts_the_records_of_the_whole_pass_across_attempts(
    target: Target, databases: Databases, api: PagedApi
):
    sync = configured(target, api, "orders")
    page = {"data": api.records[6:], "meta": {"next": None, "total": 8}}
    api.faults = [lambda: None, lambda: None, (502, {}, b""), ok(page)]
    assert isinstance(run(target, databases, sync), Retry)
    assert run(target, databases, sync).fetched == 2
    api.faults = [ok({**page, "meta": {"next": None, "total": 9}})]
    with pytest.raises(Permanent, match=r"meta.total: 9.*add 'meta.total' to pages.ignore"):
        run(target, databases, sync, full=True)
    api.faults = [ok({**page, "meta": {"next": None, "total": 9}})]
    ignoring = configured(target, api, "orders", pages={"ignore": ["total"]})
    assert run(target, databases, ignoring, full=True).fetched == 2


def test_an_error_of_graphql_is_permanent_and_named(target: Target, databases: Databases, api: PagedApi):
    api.faults = [ok({"errors": [{"message": "no field nodes"}], "data": None})]
    with pytest.raises(Permanent, match="no field nodes"):
        run(target, databases, configured(target, api, "graphql", **STYLES["graphql"]))


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ("pages", "Input should be"),
        ({"style": "link", "param": "p"}, "param is for the style page"),
        ({"header": "X-Cursor"}, "header is for the style cursor"),
    ],
)
def test_pages_declared_wrongly_are_refused_with_the_settings(pages: Any, expected: str):
    with pytest.raises(ValidationError, match=expected):
        settings(syncs={"x": {"url": "http://x.example", "table": "x", "pages": pages}})


RESETS = [
    (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "{at}"}),
    (403, {"Retry-After": "600"}),
    (429, {"X-RateLimit-Reset": "{at}000"}),
    (429, {"RateLimit-Reset": "600"}),
    (429, {"RateLimit": '"default";r=0;t=600'}),
    (503, {"Retry-After": "{date}"}),
]


@pytest.mark.parametrize(("status", "headers"), RESETS)
@pytest.mark.parametrize("clock", [timedelta(), timedelta(hours=-3)])
def test_a_limit_is_waited_for_by_the_clock_of_the_server(
    target: Target, databases: Databases, api: PagedApi, status: int, headers: dict[str, str], clock: timedelta
):
    now = datetime.now(UTC) + clock
    at = now + timedelta(minutes=10)
    spelled = {
        name: value.format(at=int(at.timestamp()), date=format_datetime(at, usegmt=True))
        for name, value in headers.items()
    }
    api.date = format_datetime(now, usegmt=True)
    api.faults = [(status, spelled, b"")]
    outcome = run(target, databases)
    assert isinstance(outcome, Snooze)
    assert timedelta(seconds=598) <= outcome.delay <= timedelta(seconds=602)


@pytest.mark.parametrize("status", [408, 425])
def test_a_timeout_of_the_server_is_a_retry(target: Target, databases: Databases, api: PagedApi, status: int):
    api.faults = [(status, {}, b"")]
    assert isinstance(run(target, databases), Retry)
