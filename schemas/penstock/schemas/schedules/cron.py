"""The times of a cron rule, in its time zone.

A rule has five fields, or six with seconds first. It may have names (`MON`, `JAN`), steps, ranges, lists, `L`, `LW`,
`5L` and `MON#2`, as CronSim documents, and `@daily` and the like. A range may go over the end of its field (`22-2`,
`SAT-SUN`). On days when the clock changes, it works as Debian's cron:

- A time that the clock skips fires once, at the first minute after the gap. A rule for every hour (`30 * * * *`) misses
  nothing in a gap of whole hours, so nothing changes for it.
- A time that comes twice fires the first time, if the rule is for a fixed time: minute and hour do not begin with `*`.
  Any other rule (`*/10 * * * *`, `0 * * * *`) follows elapsed time: it fires in both of two equal hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from penstock.config.errors import ConfigError
from penstock.schemas.schedules.calendars import BusinessDays, Closed, move_closed

_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a rule: its values from `low` to `high`, the names of the first ones, and its unit in `every`."""

    name: str
    low: int
    high: int
    unit: str = ""
    names: tuple[str, ...] = ()

    def value(self, text: str) -> int | None:
        """The value of a number or a name; None if it is neither."""
        if text in self.names:
            return self.low + self.names.index(text)
        return int(text) if text.isdecimal() else None


_FIELDS = (
    _Field("second", 0, 59, "s"),
    _Field("minute", 0, 59, "m"),
    _Field("hour", 0, 23, "h"),
    _Field("day", 1, 31, "d"),
    _Field("month", 1, 12, "", ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    _Field("weekday", 0, 6, "d", ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_STEP = re.compile(r"/(\d+)$")
_RANGE = re.compile(r"(\w+)-(\w+)(?:/(\d+))?")

_LONGEST = 1000
"""Characters of a rule, enough to list every value of every field."""

_DAY, _HOUR, _MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
_EVERY_HOUR = set(range(24))


class Cron:
    """A cron rule, parsed.

    Arguments:
        days: the business days; None: all days.
        closed: what happens to a time on any other day: see `calendars.move_closed`.

    Raises:
        ConfigError: the rule is wrong, or never fires.
    """

    def __init__(self, rule: str, zone: ZoneInfo, days: BusinessDays | None = None, closed: Closed = "skip") -> None:
        try:
            from cronsim import CronSim, CronSimError
        except ModuleNotFoundError as error:
            raise ConfigError(f"{error}; cron rules need pip install 'penstock[workers]'") from None

        text = rule.strip().lower()
        if len(text) > _LONGEST:
            raise ConfigError(f"cron {text[:40]!r}…: it has {len(text)} characters; a rule has {_LONGEST} at most")
        fields = _NAMED.get(text, text)
        if fields.startswith("@"):
            raise ConfigError(f"cron {rule!r}: there are {', '.join(_NAMED)}")
        try:
            fields = " ".join(_readable(fields.split()))
        except ValueError as error:
            raise ConfigError(f"cron {rule!r}: {error}") from None
        try:
            # Naive, so that it follows the wall clock alone; changes of the clock are handled here.
            self._sim: Any = CronSim(fields, datetime(2000, 1, 1))  # noqa: DTZ001
        except CronSimError as error:
            raise ConfigError(f"cron {rule!r}: {str(error).lower()}; see `minute hour day month weekday`") from None
        minute, hour = fields.split()[-5:-3]
        self._zone, self._days, self._closed = zone, days, closed
        self._is_fixed = not minute.startswith("*") and not hour.startswith("*")
        self._is_hourly = self._sim.hours == _EVERY_HOUR
        if next(self.after(datetime.now(UTC)), None) is None:
            raise ConfigError(f"cron {rule!r}: it never fires" + (" on a business day" if days is not None else ""))

    def after(self, after: datetime) -> Iterator[datetime]:
        """The times after an aware time at which the rule fires, in UTC, ascending."""
        last = after.astimezone(UTC)
        for time in self._instants(self._walls(self._search_start(last))):
            if time > last:
                last = time
                yield time

    def _search_start(self, after: datetime) -> datetime:
        """Local time to start searching at; earlier if the clock is about to be set back."""
        local = after.astimezone(self._zone)
        back = _offset(local) - _offset((after + _DAY).astimezone(self._zone))
        return local.replace(tzinfo=None) - max(back, timedelta())

    def _walls(self, after: datetime) -> Iterator[datetime]:
        """Local times after a local time, ascending. Ends if there is none for 50 years."""
        if self._days is None:
            return self._plain(after)
        return move_closed(self._plain, after, self._days, self._closed)

    def _plain(self, after: datetime) -> Iterator[datetime]:
        sim = copy(self._sim)
        sim.dt = after.replace(microsecond=0)
        times: Iterator[datetime] = sim
        return times

    def _instants(self, walls: Iterator[datetime]) -> Iterator[datetime]:
        again: list[datetime] = []  # second occurrences; they follow after all the first ones
        for wall in walls:
            first, second = _both(wall, self._zone)
            if second > first and not self._is_fixed:
                again.append(second)
            elif again:
                yield from again
                again.clear()
            if second < first:
                if self._is_hourly and not self._is_fixed and not (first - second) % _HOUR:
                    continue
                first = _after_gap(wall, self._zone)
            yield first
        yield from again


def _readable(texts: list[str]) -> Iterator[str]:
    """The fields as CronSim reads them: ranges over the end of their field become lists.

    Raises:
        ValueError: a step is larger than its field, so that it would be another rule than the one that is meant.
    """
    for text, field in zip(texts, _FIELDS[-len(texts) :], strict=False):
        yield ",".join(_readable_part(part, field) for part in text.split(","))
    yield from texts[len(_FIELDS) :]


def _readable_part(part: str, field: _Field) -> str:
    size = field.high - field.low + 1
    step = int(match[1]) if (match := _STEP.search(part)) else 1
    if step > size:
        instead = (
            f'write every = "{step}{field.unit}" instead of cron' if field.unit else "name the months, such as 1,7"
        )
        raise ValueError(f"the step {step} is larger than its field, {field.name}, which has {size} values; {instead}")
    if (match := _RANGE.fullmatch(part)) is None:
        return part
    first, last = field.value(match[1]), field.value(match[2])
    if first is None or last is None or first <= last or step == 0:
        return part
    if (field.name, first) == ("weekday", 7):
        values = [*range(last + 1)]
    elif first > field.high or last < field.low:
        return part
    else:
        values = [*range(first, field.high + 1), *range(field.low, last + 1)]
    return ",".join(map(str, values[::step]))


def _both(wall: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Both instants at which the clock shows this local time, in UTC.

    They are mostly the same. Where the clock shows the time twice, the second is later; where it never does, the first
    is later.
    """
    return wall.replace(tzinfo=zone).astimezone(UTC), wall.replace(tzinfo=zone, fold=1).astimezone(UTC)


def _after_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    first, second = _both(wall, zone)
    while second < first:
        wall = wall.replace(second=0) + _MINUTE
        first, second = _both(wall, zone)
    return first


def _offset(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta()


def localized(wall: datetime, zone: ZoneInfo) -> datetime:
    """Time → UTC. A naive time is one on the zone's clock: the first of two, or after the gap that skips it."""
    return wall.astimezone(UTC) if wall.tzinfo is not None else _after_gap(wall, zone)


def clock_changes(zone: ZoneInfo, after: datetime, until: datetime) -> Iterator[tuple[datetime, timedelta]]:
    """Changes of the zone's clock between two aware times: when (UTC, to the minute) and by how much."""
    day = after.astimezone(UTC)
    while day < until:
        low, high = day, min(day + _DAY, until)
        before = _offset(low.astimezone(zone))
        change = _offset(high.astimezone(zone)) - before
        if change:
            while high - low > _MINUTE:
                middle = low + (high - low) / 2
                low, high = (middle, high) if _offset(middle.astimezone(zone)) == before else (low, middle)
            yield high.replace(second=0, microsecond=0), change
        day += _DAY
