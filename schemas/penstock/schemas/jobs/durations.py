"""Durations and due times, as callers write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from penstock.config.errors import InvalidJob

Duration = timedelta | float
"""A timedelta, or a number of seconds."""


def to_timedelta(value: Duration) -> timedelta:
    """Timedelta or seconds → timedelta."""
    return value if isinstance(value, timedelta) else timedelta(seconds=value)


def positive_duration(name: str, value: Duration | None) -> timedelta | None:
    """Option → timedelta; None stays None.

    Raises:
        ValueError: the duration is zero or less; the message begins with `name`.
    """
    if value is None:
        return None
    duration = to_timedelta(value)
    if duration <= timedelta(0):
        raise ValueError(f"{name} must be more than zero")
    return duration


def resolve_run_at(run_at: datetime | None, delay: Duration | None) -> datetime:
    """Due time in UTC that one of the two options says.

    Raises:
        InvalidJob: both or none are given, or the time has no zone.
    """
    if (run_at is None) == (delay is None):
        raise InvalidJob("give run_at or delay")
    if run_at is not None:
        if run_at.tzinfo is None:
            raise InvalidJob(f"run_at {run_at.isoformat()} has no time zone; give an aware datetime")
        return run_at.astimezone(UTC)
    return datetime.now(UTC) + to_timedelta(delay or 0.0)
