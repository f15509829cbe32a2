"""Business days: which days are closed, and what becomes of times that fall on one."""

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
"""Days in a row that may be closed."""


class Days:
    """The business days of a calendar: no weekend there, and no holiday.

    Arguments:
        name: a country as `DE`, a part of one as `DE-BY` (ISO 3166), or a market as `NYSE`, `ECB`.

    Raises:
        ConfigError: there is no such calendar.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._holidays = _holidays(name)

    def is_open(self, day: date) -> bool:
        return bool(self._holidays.is_working_day(day))

    def nearest(self, day: date, step: timedelta) -> date:
        """The day itself if it is open, else the first open one in that direction."""
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


def moved(walls: Walls, after: datetime, days: Days, closed: Closed) -> Iterator[datetime]:
    """What `walls` gives after a time, with what falls on a closed day left out, or moved with its time of day.

    Rising. With `before` and `after` it may begin earlier than asked.
    """
    if closed == "skip":
        yield from _open(walls, after, days)
        return
    step = -_DAY if closed == "before" else _DAY
    # What is moved to this day may come from any of the closed days before it.
    start = days.nearest(after.date(), -_DAY)
    target, times = start, set[time]()
    for wall in walls(datetime.combine(start, time()) - timedelta(seconds=1)):
        day = days.nearest(wall.date(), step)
        if day != target:
            yield from (datetime.combine(target, one) for one in sorted(times))
            target, times = day, set()
        times.add(wall.time())
    yield from (datetime.combine(target, one) for one in sorted(times))


def _open(walls: Walls, after: datetime, days: Days) -> Iterator[datetime]:
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
