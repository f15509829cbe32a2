from __future__ import annotations

import gzip
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.builtin.servers import Api, Target, ok, run

from penstock.schemas.builtin.paths import find
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, Permanent, Retry, Snooze
from penstock.workers.builtin.databases import Databases


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_retry_after_is_waited_out(target: Target, databases: Databases, api: Api, status: int):
    date = format_datetime(datetime.now(UTC), usegmt=True)
    api.faults = [(status, {"Retry-After": "0"}, b""), (status, {"Retry-After": date}, b"")]
    assert run(target, databases).fetched == 8
    assert len(api.requests) == 5


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_retry_after_is_a_snooze_and_nothing_is_fetched_again(
    target: Target, databases: Databases, api: Api, status: int
):
    api.faults = [ok({"data": api.records[:3], "meta": {"next": 3}}), (status, {"Retry-After": "600"}, b"")]
    outcome = run(target, databases)
    assert isinstance(outcome, Snooze)
    assert outcome.delay == timedelta(minutes=10)
    assert f"HTTP {status}" in (outcome.reason or "")
    assert run(target, databases).pages == 2
    assert [query.get("cursor") for query in api.requests] == [None, "3", "3", "6"]


def test_a_server_that_never_lets_up_is_a_retry(target: Target, databases: Databases, api: Api):
    api.faults = [(429, {"Retry-After": "0"}, b"")] * 50
    outcome = run(target, databases)
    assert isinstance(outcome, Retry)
    assert "HTTP 429, 5 times" in outcome.reason
    assert len(api.requests) == 5


def test_a_wait_does_not_go_past_the_deadline(target: Target, databases: Databases, api: Api):
    api.faults = [(503, {"Retry-After": "4"}, b"")]
    ctx = Context(job_id=new_id(), deadline=datetime.now(UTC) + timedelta(seconds=2))
    outcome = run(target, databases, ctx=ctx)
    assert isinstance(outcome, Retry)
    assert outcome.after == timedelta(seconds=4)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_server_error_is_a_retry(target: Target, databases: Databases, api: Api, status: int):
    api.faults = [(status, {}, b"")]
    outcome = run(target, databases)
    assert isinstance(outcome, Retry)
    assert f"HTTP {status}" in outcome.reason


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_a_refusal_with_another_status_is_permanent(target: Target, databases: Databases, api: Api, status: int):
    api.faults = [(status, {"Location": "http://elsewhere.example/"}, b"no such key")]
    with pytest.raises(Permanent, match=f"HTTP {status}"):
        run(target, databases, target.settings(params={"token": "hidden"}))
    assert len(api.requests) == 1


def test_a_message_never_shows_the_query(target: Target, databases: Databases, api: Api):
    api.faults = [(403, {}, b"")]
    with pytest.raises(Permanent) as caught:
        run(target, databases, target.settings(url=api.url + "?api_key=hidden"))
    assert "hidden" not in str(caught.value)
    assert api.requests[0]["api_key"] == "hidden"


def test_a_timeout_and_a_refused_connection_are_retries(target: Target, databases: Databases, api: Api):
    hold = threading.Event()
    api.faults = [lambda: hold.wait(30) and None]
    outcome = run(target, databases, target.settings(timeout_seconds=0.2))
    hold.set()
    assert isinstance(outcome, Retry)
    assert "ReadTimeout" in outcome.reason
    outcome = run(target, databases, target.settings(url="http://127.0.0.1:1/"))
    assert isinstance(outcome, Retry)
    assert "ConnectError" in outcome.reason


def test_a_sync_whose_cursor_has_expired_starts_again(target: Target, databases: Databases, api: Api):
    run(target, databases)
    api.faults = [(410, {}, b"")]
    assert run(target, databases).pages == 3
    assert [query.get("cursor") for query in api.requests[3:]] == ["6", None, "3", "6"]


def test_the_next_page_may_be_a_url_of_the_same_server_only(target: Target, databases: Databases, api: Api):
    api.faults = [ok({"data": api.records[:3], "meta": {"next": f"{api.url}?cursor=3&sig=abc"}})]
    assert run(target, databases, target.settings(params={"limit": 3})).fetched == 8
    assert api.requests[:2] == [{"limit": "3"}, {"cursor": "3", "sig": "abc"}]
    for url in ("http://elsewhere.example/orders?cursor=3", api.url.replace("127.0.0.1", "127.0.0.2")):
        api.faults = [ok({"data": [], "meta": {"next": url}})]
        with pytest.raises(Permanent, match="another server"):
            run(target, databases, full=True)


def test_a_server_that_names_a_page_twice_is_found_out(target: Target, databases: Databases, api: Api):
    api.faults = [ok({"data": [], "meta": {"next": "x"}}), ok({"data": [], "meta": {"next": "y"}})]
    api.faults.append(ok({"data": [], "meta": {"next": "x"}}))
    with pytest.raises(Permanent, match="a page twice"):
        run(target, databases)


def test_secrets_come_from_the_environment(
    target: Target, databases: Databases, api: Api, monkeypatch: pytest.MonkeyPatch
):
    configured = target.settings(headers={"Authorization": "Bearer ${ORDERS_TOKEN}"}, params={"open": True})
    with pytest.raises(Permanent, match="Authorization needs the environment variable ORDERS_TOKEN"):
        run(target, databases, configured)
    monkeypatch.setenv("ORDERS_TOKEN", "s3cret\n")
    run(target, databases, configured)
    assert api.headers[0]["Authorization"] == "Bearer s3cret"
    assert api.requests[0] == {"open": "true"}


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b'{"data": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_an_answer_that_is_not_json_is_a_retry(target: Target, databases: Databases, api: Api, body: bytes):
    api.faults = [(200, {}, body)]
    outcome = run(target, databases)
    assert isinstance(outcome, Retry)
    assert "not JSON" in outcome.reason


def test_a_page_may_not_swell_past_its_limit(target: Target, databases: Databases, api: Api):
    bomb = gzip.compress(b" " * 50_000_000)
    api.faults = [(200, {"Content-Encoding": "gzip"}, bomb)]
    with pytest.raises(Permanent, match="over max_page_bytes"):
        run(target, databases, target.settings(max_page_bytes=100_000))


def test_paths_lead_through_objects_and_lists():
    document = {"a": {"b": [{"c": 1}]}, "x": None}
    assert find(document, "a.b.0.c") == 1
    assert find(document, "") is document
    for nothing in ("a.b.7.c", "a.c.d", "x.y", "a.b.c", "a.b.-1"):
        assert find(document, nothing) is None
