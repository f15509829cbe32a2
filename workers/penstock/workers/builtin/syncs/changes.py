"""Times and numbers of change of records: which is later, which is in the future, where the next run starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

SLACK = timedelta(days=1)
"""A change is in the future past this: more than the clocks of two servers, or two time zones, differ."""

_SCALES = {"seconds": 1, "milliseconds": 1000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def later(first: str | None, second: str | None) -> str | None:
    """The greater of two changes; the first of two equal ones."""
    if first is None or second is None:
        return first if second is None else second
    return second if is_later(second, first) else first


def is_later(first: Any, second: Any) -> bool:
    """Whether a change is greater than another: as numbers or times where both are, else as text."""
    readers: tuple[Callable[[Any], Any], ...] = (_number, _instant)
    for read in readers:
        try:
            return bool(read(first) > read(second))
        except (ValueError, InvalidOperation):
            continue
    return str(first) > str(second)


def is_ahead(change: Any, now: datetime, unit: str | None) -> bool:
    """Whether a change is a time in the future. Numbers are times only with a unit.

    Arguments:
        now: by the server's clock, aware.
        unit: `seconds` or `milliseconds` since 1970, or None.
    """
    try:
        return _time(change, unit) > now + SLACK
    except OverflowError:
        return True
    except (ValueError, InvalidOperation):
        return False


def start_of_next(change: str, lookback: timedelta, unit: str | None) -> str:
    """A change, moved back where it is a time, and spelled as the server spelled it."""
    if not lookback:
        return change
    try:
        if unit is not None:
            start = max(_number(change) - Decimal(str(lookback.total_seconds())) * _SCALES[unit], Decimal(0))
            return str(int(start)) if start == start.to_integral_value() else format(start, "f")
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", change):
            return (date.fromisoformat(change) - timedelta(days=-(-lookback // timedelta(days=1)))).isoformat()
        time = datetime.fromisoformat(change) - lookback
    except (ValueError, InvalidOperation, OverflowError):
        return change
    if _is_number(change):
        return change
    digits = re.search(r"\.(\d+)", change)
    text = time.isoformat(change[10:11] or "T", "seconds" if digits is None else "microseconds")
    if digits is not None:
        head, _, tail = text.partition(".")
        text = f"{head}.{tail[:6].ljust(len(digits[1]), '0')[: len(digits[1])]}{tail[6:]}"
    return text.replace("+00:00", "Z") if change.endswith("Z") else text


def spelled(time: datetime, unit: str | None) -> str:
    """A time as a parameter: ISO 8601 in UTC, or a whole number of the unit."""
    if unit is not None:
        return str(int((time - _EPOCH).total_seconds() * _SCALES[unit]))
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def earlier(first: str | None, second: str | None) -> str | None:
    """The smaller of two changes; the first where the other is None."""
    if first is None or second is None:
        return first
    return second if is_later(first, second) else first


def _time(change: Any, unit: str | None) -> datetime:
    if unit is not None:
        return _EPOCH + timedelta(seconds=float(_number(change)) / _SCALES[unit])
    if isinstance(change, str) and _is_number(change):
        raise ValueError("a number, such as a revision or a year")
    return _instant(change)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except (ValueError, InvalidOperation):
        return False
    return True


def _number(value: Any) -> Decimal:
    if isinstance(value, datetime | date | bool):
        raise ValueError("not a number")
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError("not a finite number")
    return number


def _instant(value: Any) -> datetime:
    match value:
        case datetime():
            time = value
        case date():
            time = datetime(value.year, value.month, value.day, tzinfo=UTC)
        case str():
            time = datetime.fromisoformat(value)
        case _:
            raise ValueError("not a time")
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time
