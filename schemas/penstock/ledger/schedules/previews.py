"""Previews of a schedule's next times on the clock of its zone, with the changes of that clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from penstock.schemas.schedules.cron import clock_changes
from penstock.schemas.schedules.times import Times

_YEAR, _NEAR = timedelta(days=370), timedelta(hours=4)
_REACHES = (_NEAR, timedelta(days=8), _YEAR)
_MOST = 4
"""The most times on either side of a change of the clock."""


def preview_times(times: Times, zone: ZoneInfo, after: datetime, count: int) -> list[dict[str, Any]]:
    """The next times: `at` on the zone's clock, `utc`, and `clock`, its changes since the time before.

    Arguments:
        after: aware.
    """
    return _rows(list(islice(times.after(after), count)), zone, after)


def around_clock_changes(times: Times, zone: ZoneInfo, after: datetime, count: int = 2) -> list[dict[str, Any]]:
    """The times before and after the next changes of the clock within a year: those of a few hours, or the nearest."""
    rows: list[dict[str, Any]] = []
    for change, _ in islice(clock_changes(zone, after, after + _YEAR), count):
        before = next(filter(None, (_between(times, change - reach, change) for reach in _REACHES)), [])
        near = [time for time in before if change - time <= _NEAR]
        then = list(islice(times.after(change - _INSTANT), _MOST))
        close = [time for time in then if time - change <= _NEAR]
        chosen = (near[-_MOST:] or before[-1:]) + (close or then[:1])
        rows += _rows(chosen, zone, chosen[0] if chosen else change)
    return rows


_INSTANT = timedelta(microseconds=1)


def _between(times: Times, begin: datetime, end: datetime) -> list[datetime]:
    return times.until(begin, end - _INSTANT, most=20_000)


def _rows(times: Sequence[datetime], zone: ZoneInfo, before: datetime) -> list[dict[str, Any]]:
    rows = []
    for time in times:
        changes = list(clock_changes(zone, before, time)) if time - before < _YEAR else []
        rows.append(
            {
                "at": time.astimezone(zone).isoformat(),
                "utc": time,
                "clock": "; ".join(_change(at, by, zone) for at, by in changes[-2:]) or _fold(time, zone),
            }
        )
        before = time
    return rows


def _change(at: datetime, by: timedelta, zone: ZoneInfo) -> str:
    from_ = (at.astimezone(zone).replace(tzinfo=None) - by).strftime("%Y-%m-%d %H:%M")
    to = at.astimezone(zone).strftime("%H:%M")
    return f"clock goes {'forward' if by > timedelta() else 'back'} before it: {from_} becomes {to}"


def _fold(time: datetime, zone: ZoneInfo) -> str | None:
    """Which of the two it is, for a time that the clock shows twice; else None."""
    wall = time.astimezone(zone).replace(tzinfo=None)
    both = [wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    if both[0] >= both[1]:
        return None
    return f"the {'first' if time == both[0] else 'second'} of two {wall:%H:%M}"
