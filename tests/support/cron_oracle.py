"""When a cron rule fires, worked out in another way: by looking at a zone's clock at every minute that passes."""

from __future__ import annotations

import calendar
import random
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Dublin",
    "Europe/Lisbon",
    "Europe/Moscow",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Asia/Tokyo",
    "Asia/Beirut",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "America/Santiago",
    "America/Havana",
    "Australia/Lord_Howe",
    "Pacific/Auckland",
    "Pacific/Chatham",
)
FIELDS = (
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]),
)
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


class Oracle:
    def __init__(self, rule: str) -> None:
        self.minute, self.hour, self.day, self.month, self.weekday = rule.upper().split()
        self.minutes, self.hours = _numbers(self.minute, 0), _numbers(self.hour, 1)
        self.fixed = self.minute[0] != "*" and self.hour[0] != "*"
        self._days: dict[date, bool] = {}

    def shows(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours:
            return False
        day = wall.date()
        if day not in self._days:
            self._days[day] = self._is_day(day)
        return self._days[day]

    def _is_day(self, day: date) -> bool:
        if day.month not in _numbers(self.month, 3):
            return False
        of_month, of_week = _is_of_month(self.day, day), _is_of_week(self.weekday, day)
        either = self.day[0] != "*" and self.weekday[0] != "*"
        return of_month or of_week if either else of_month and of_week

    def fires(self, zone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
        """Every full minute from `begin` to before `end`, both in UTC, at which it fires."""
        fired: dict[datetime, datetime] = {}
        time, before = begin - 3 * HOUR, (begin - 3 * HOUR - MINUTE).astimezone(zone).replace(tzinfo=None)
        while time < end:
            wall = time.astimezone(zone).replace(tzinfo=None)
            fires = self.shows(wall) and not (self.fixed and wall in fired)
            if wall - before > MINUTE:
                hourly = not self.fixed and len(self.hours) == 24 and not (wall - before - MINUTE) % HOUR
                skipped = [before + number * MINUTE for number in range(1, (wall - before) // MINUTE)]
                fires = fires or (not hourly and any(map(self.shows, skipped)))
            if fires and time >= begin:
                yield time
            if not before < wall or len(fired) > 2000:  # only when the clock goes back does the past matter
                fired = {moment: at for moment, at in fired.items() if time - at < 3 * HOUR}
            fired[wall], before = time, wall
            time += MINUTE


def _numbers(text: str, which: int) -> set[int]:
    low, high, names = FIELDS[which]
    numbers: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        else:
            ends = [names.index(name) + 1 if name in names else int(name) for name in span.split("-")]
            first, last = ends[0], ends[-1] if len(ends) > 1 or not step else high
        numbers |= {number for number in range(first, last + 1) if not (number - first) % int(step or 1)}
    return numbers


def _is_of_month(text: str, day: date) -> bool:
    last = calendar.monthrange(day.year, day.month)[1]
    for part in text.split(","):
        if part == "L":
            if day.day == last:
                return True
        elif part == "LW":
            weekdays = [number for number in range(1, last + 1) if date(day.year, day.month, number).weekday() < 5]
            if day.day == weekdays[-1]:
                return True
        elif day.day in _numbers(part, 2):
            return True
    return False


def _is_of_week(text: str, day: date) -> bool:
    number = day.isoweekday() % 7
    last = calendar.monthrange(day.year, day.month)[1]
    for part in text.split(","):
        if part == "*":
            return True
        if part.endswith("L"):
            if number == int(part[:-1]) % 7 and day.day > last - 7:
                return True
        elif "#" in part:
            name, nth = part.split("#")
            if number == _weekday(name) and (day.day - 1) // 7 + 1 == int(nth):
                return True
        else:
            first, _, end = part.partition("-")
            if _weekday(first) <= number <= _weekday(end or first):
                return True
    return False


def _weekday(name: str) -> int:
    return DAYS.index(name) if name in DAYS else int(name) % 7


def some_rule(draw: random.Random) -> str:
    """A rule such as people write, with a liking for the hours in which clocks change."""
    minute = draw.choice(["0", "30", "15,45", "*/10", "*/7", "*", "5-20/5", "59"])
    hour = draw.choice(["*", "*", "2", "1-3", "0", "*/2", "2,3", "1", "0-4", "*/6", "9-17", "23"])
    day = draw.choice(["*"] * 6 + ["1", "L", "LW", "15,L", "*/2", "25-31", "8-14"])
    month = draw.choice(["*"] * 6 + ["MAR,OCT", "3-11", "*/3", "JAN-JUN"])
    weekday = draw.choice(["*"] * 5 + ["SUN", "MON-FRI", "0", "5L", "SUN#2", "MON#1,FRI#3", "6,SUN"])
    return f"{minute} {hour} {day} {month} {weekday}"
