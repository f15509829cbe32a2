"""Durations and due times, as callers write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.config.errors import InvalidJob

Duration = timedelta | float
"""A timedelta, or a number of seconds."""

LONGEST = timedelta(days=36_525)
"""The longest duration, a hundred years: a time that far ahead still fits every clock and database."""


def to_timedelta(value: Duration) -> timedelta:
    """Timedelta or seconds → timedelta."""
    return value if isinstance(value, timedelta) else timedelta(seconds=value)


def checked_duration(name: str, value: Any) -> timedelta | None:
    """Option → timedelta of zero or more; None stays None.

    Raises:
        ValueError: it is not a duration, negative, or longer than a hundred years; the message begins with `name`.
    """
    duration = _read(name, value)
    if duration is not None and duration < timedelta(0):
        raise ValueError(f"{name} must not be negative, as {value!r} is")
    return duration


def positive_duration(name: str, value: Any) -> timedelta | None:
    """`checked_duration`, more than zero."""
    duration = _read(name, value)
    if duration is not None and duration <= timedelta(0):
        raise ValueError(f"{name} must be more than zero, not {value!r}")
    return duration


def _read(name: str, value: Any) -> timedelta | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, timedelta | int | float):
        raise ValueError(f"{name} must be a timedelta or a number of seconds, not {value!r}")
    longest: Any = LONGEST if isinstance(value, timedelta) else LONGEST.total_seconds()
    if not -longest <= value <= longest:  # which NaN is not, either
        raise ValueError(f"{name} must be at most a hundred years, not {value!r}")
    return to_timedelta(value)


def checked_time(name: str, value: Any) -> datetime:
    """Time as a caller gives it → the same in UTC.

    Raises:
        ValueError: it is not a datetime, has no zone, or is more than a hundred years ahead; the message begins with
            `name`.
    """
    if not isinstance(value, datetime):
        raise ValueError(f"{name} must be an aware datetime, not {value!r}")
    if value.tzinfo is None:
        raise ValueError(f"{name} {value.isoformat()} has no time zone; give an aware datetime")
    if value > datetime.now(UTC) + LONGEST:
        raise ValueError(f"{name} must lie at most a hundred years ahead, not at {value.isoformat()}")
    return max(value, _EARLIEST).astimezone(UTC)


_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
"""A time before it is past anyway, and some clocks and databases have none."""


def resolve_run_at(run_at: datetime | None, delay: Duration | None) -> datetime:
    """Due time in UTC that one of the two options says.

    Raises:
        InvalidJob: both or none are given, or one is wrong.
    """
    if (run_at is None) == (delay is None):
        raise InvalidJob("give run_at or delay")
    try:
        if run_at is not None:
            return checked_time("run_at", run_at)
        wait = checked_duration("delay", delay)
    except ValueError as error:
        raise InvalidJob(str(error)) from error
    return datetime.now(UTC) + (wait or timedelta(0))
