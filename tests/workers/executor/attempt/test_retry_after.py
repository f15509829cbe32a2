from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from typing import Any, ClassVar
from urllib.error import HTTPError

import httpx
import pytest

from penstock.workers.handlers.retry_after import requested_wait, retry_after

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Limited(Exception):
    def __init__(self, retry_after: Any) -> None:
        self.retry_after = retry_after


@pytest.mark.parametrize(
    ("expected", "wait"),
    [
        (30, 30),
        (1.5, 1.5),
        ("30", 30),
        (timedelta(minutes=2), 120),
        (NOW + timedelta(seconds=5), 5),
        (NOW - timedelta(seconds=5), 0),
        (-3, 0),
        (format_datetime(NOW + timedelta(minutes=1), usegmt=True), 60),
    ],
)
def test_an_error_may_say_how_long_to_wait(expected: Any, wait: float) -> None:
    assert requested_wait(Limited(expected), NOW) == timedelta(seconds=wait)


@pytest.mark.parametrize(
    "expected", [None, True, float("nan"), float("inf"), "soon", "", datetime(2026, 1, 1), object(), [30]]
)
def test_an_invalid_retry_after_asks_for_no_wait(expected: Any) -> None:
    assert requested_wait(Limited(expected), NOW) is None


def test_a_wait_beyond_any_calendar_is_a_long_one() -> None:
    for expected in (1e300, timedelta.max):
        wait = requested_wait(Limited(expected), NOW)
        assert wait is not None
        assert wait > timedelta(days=10_000)
        assert NOW + wait


def response(**headers: str) -> httpx.HTTPStatusError:
    answer = httpx.Response(429, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return httpx.HTTPStatusError("429", request=httpx.Request("GET", "http://x"), response=answer)


def test_the_header_of_a_response_counts() -> None:
    assert requested_wait(response(Retry_After="120"), NOW) == timedelta(minutes=2)
    assert requested_wait(response(), NOW) is None
    headers = Message()
    headers["Retry-After"] = "7"
    with HTTPError("http://x", 503, "busy", headers, io.BytesIO()) as error:
        assert requested_wait(error, NOW) == timedelta(seconds=7)


def test_a_response_that_is_false_counts_too() -> None:
    class Response:
        headers: ClassVar = {"Retry-After": "5"}

        def __bool__(self) -> bool:
            return False

    error = Exception("429")
    error.response = Response()  # type: ignore[attr-defined]
    assert requested_wait(error, NOW) == timedelta(seconds=5)


def test_a_date_is_read_by_the_clock_of_the_server_that_wrote_it() -> None:
    server = NOW + timedelta(hours=1)
    at = format_datetime(server + timedelta(minutes=1), usegmt=True)
    assert requested_wait(response(Retry_After=at, Date=format_datetime(server, usegmt=True)), NOW) == timedelta(
        minutes=1
    )
    assert requested_wait(response(Retry_After=at), server) == timedelta(minutes=1)


def test_an_exception_that_fails_when_looked_at_says_nothing() -> None:
    class Broken(Exception):
        @property
        def response(self) -> Any:
            raise RuntimeError("no response here")

    assert requested_wait(Broken(), NOW) is None


def test_the_header_is_seconds_or_a_date() -> None:
    assert retry_after("120", NOW) == timedelta(minutes=2)
    assert retry_after("Thu, 01 Jan 2026 00:01:00 GMT", NOW) == timedelta(minutes=1)
    assert retry_after("Wed, 31 Dec 2025 00:00:00 GMT", NOW) == timedelta(0)
    for nothing in (None, "", "soon", "-5", "nan", "1e9", "9" * 40):
        assert retry_after(nothing, NOW) is None
