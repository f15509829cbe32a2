"""`Retry-After`, as a header or on an exception: when the other side asks to be tried again."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

_LONGEST = timedelta(seconds=999_999_999)


def requested_wait(error: BaseException, now: datetime) -> timedelta | None:
    """The wait that an error asks for; None where it asks for none that can be read.

    Read are its attribute `retry_after` (seconds, a timedelta, an aware datetime, or what the header may hold),
    and the header of an HTTP response in its attribute `response`, or of the error itself where it is one (urllib).
    """
    try:
        wait = _wait(getattr(error, "retry_after", None), now)
        if wait is not None:
            return wait
        response = getattr(error, "response", None)  # those of requests are false where the status is an error
        headers = getattr(error if response is None else response, "headers", None)
        if headers is None or not hasattr(headers, "get"):
            return None
        # The date is the server's: its clock is in the same response.
        return retry_after(headers.get("Retry-After"), _date(headers.get("Date")) or now)
    except Exception:  # a third party's exception: a hint that cannot be read must not cost the retry
        return None


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The header `Retry-After` (RFC 9110, 10.2.3), seconds or an HTTP date, as a wait; None where it cannot be read."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return timedelta(seconds=int(value))
    until = _date(value)
    return None if until is None else max(until - now, timedelta(0))


def _wait(value: Any, now: datetime) -> timedelta | None:
    match value:
        case timedelta():
            wait = value
        case datetime() if value.tzinfo is not None:
            wait = value - now
        case bool():
            return None
        case int() | float() if math.isfinite(value):
            wait = timedelta(seconds=min(value, _LONGEST.total_seconds()))
        case str():
            return retry_after(value, now)
        case _:
            return None
    return min(max(wait, timedelta(0)), _LONGEST)


def _date(value: str | None) -> datetime | None:
    try:
        time = parsedate_to_datetime(value) if value else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
