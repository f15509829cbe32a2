"""Verdict on an answer that is not a page: wait, try again, or give up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal

from penstock.workers.handlers.retry_after import retry_after

Verdict = Literal["page", "wait", "retry", "refused"]

_RESETS = ("x-ratelimit-reset", "x-rate-limit-reset", "ratelimit-reset", "x-ratelimit-requests-reset")
_REMAINING = ("x-ratelimit-remaining", "x-rate-limit-remaining", "ratelimit-remaining")
_TRY_AGAIN = (408, 421, 423, 425)
"""Statuses of the 4xx that are about the moment: timeout, misdirected, locked, too early."""
_EARLIEST = 1_000_000_000
"""Numbers from here on are seconds since 1970, smaller ones a wait in seconds."""


def verdict(status: int, headers: Mapping[str, str]) -> Verdict:
    """Verdict on a status: a refusal for lack of budget waits, also as the 403 of GitHub and others."""
    if status == 200:
        return "page"
    if status in (429, 503) or (status == 403 and _is_limited(headers)):
        return "wait"
    return "retry" if status >= 500 or status in _TRY_AGAIN else "refused"


def server_time(headers: Mapping[str, str]) -> datetime:
    """The server's clock, from its header `Date`; ours where that cannot be read."""
    try:
        time = parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, IndexError, OverflowError):
        return datetime.now(UTC)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def requested_wait(headers: Mapping[str, str]) -> timedelta | None:
    """The wait that an answer asks for, by the server's clock; None where it asks for none.

    Read are `Retry-After` (RFC 9110, 10.2.3), then `X-RateLimit-Reset` and its relatives (a time or a wait), then `t`
    of the draft's `RateLimit`.
    """
    now = server_time(headers)
    if (wait := retry_after(headers.get("retry-after"), now)) is not None:
        return wait
    for name in _RESETS:
        if (text := headers.get(name)) is not None and (wait := _until_reset(text.strip(), now)) is not None:
            return wait
    if match := re.search(r"[;,\s](?:t|reset)=(\d{1,9})\b", headers.get("ratelimit", "")):
        return timedelta(seconds=int(match[1]))
    return None


def _until_reset(text: str, now: datetime) -> timedelta | None:
    if not re.fullmatch(r"\d{1,13}(\.\d+)?", text):
        return retry_after(text, now)
    number = float(text)
    if number >= _EARLIEST * 1000:
        number /= 1000
    if number < _EARLIEST:
        return timedelta(seconds=number)
    wait = datetime.fromtimestamp(number, UTC) - now
    return wait if wait > timedelta(0) else None


def _is_limited(headers: Mapping[str, str]) -> bool:
    if "retry-after" in headers or any(headers.get(name, "").strip() == "0" for name in _REMAINING):
        return True
    return re.search(r"\b(?:r|remaining)=0\b", headers.get("ratelimit", "")) is not None
