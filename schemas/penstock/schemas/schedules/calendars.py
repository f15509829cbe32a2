"""Business days: the closed days of a calendar, and what happens to times on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from functools import cache
from typing import Any, Literal

from penstock.config.errors import ConfigError

Closed = Literal["skip", "before", "after"]
Walls = Callable[[datetime], Iterator[datetime]]

_DAY = timedelta(days=1)
_YEARS = 50
_LONGEST = 60
"""The most days in a row that may be closed."""


class BusinessDays:
    """The business days of a calendar: all but weekends and holidays.

    Arguments:
        name: a country such as `DE`, a part of one such as `DE-BY` (ISO 3166), or a market such as `NYSE` or `ECB`.

    Raises:
        ConfigError: the calendar does not exist.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._holidays = _holidays(name)

    def is_open(self, day: date) -> bool:
        return bool(self._holidays.is_working_day(day))

    def nearest(self, day: date, step: timedelta) -> date:
        """The day itself if it is open, else the next open day in that direction."""
        for _ in range(_LONGEST):
            if self.is_open(day):
                return day
            day += step
        raise ConfigError(f"calendar {self.name!r} has no business day within {_LONGEST} days of {day}")


@cache
def _holidays(name: str) -> Any:
    try:
        import holidays
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; calendars need pip install 'penstock[calendars]'") from None

    country, _, part = name.partition("-")
    try:
        if country in holidays.list_supported_financial():
            return holidays.financial_holidays(name)
        return holidays.country_holidays(country, subdiv=part or None)
    except NotImplementedError:
        hint = "use a country or a part of it, such as DE or DE-BY, or a market, such as NYSE or ECB"
        raise ConfigError(f"unknown calendar {name!r}; {hint}") from None


def move_closed(walls: Walls, after: datetime, days: BusinessDays, closed: Closed) -> Iterator[datetime]:
    """The times of `walls` after a time, ascending. A time on a closed day is left out, or moved to an open day at the
    same time of day.

    With `before` and `after`, the first times may be earlier than `after`.
    """
    if closed == "skip":
        yield from _open(walls, after, days)
        return
    step = -_DAY if closed == "before" else _DAY
    # A time that is moved to this day may come from any of the closed days before it.
    start = days.nearest(after.date(), -_DAY)
    target, times = start, set[time]()
    for wall in walls(datetime.combine(start, time()) - timedelta(seconds=1)):
        day = days.nearest(wall.date(), step)
        if day != target:
            yield from (datetime.combine(target, time_of_day) for time_of_day in sorted(times))
            target, times = day, set()
        times.add(wall.time())
    yield from (datetime.combine(target, time_of_day) for time_of_day in sorted(times))


def _open(walls: Walls, after: datetime, days: BusinessDays) -> Iterator[datetime]:
    last = after.year + _YEARS
    while True:
        for wall in walls(after):
            if wall.year > last:
                return
            if not days.is_open(wall.date()):
                after = datetime.combine(wall.date(), time.max)  # not each minute of a closed day
                break
            last = wall.year + _YEARS
            yield wall
        else:
            return
