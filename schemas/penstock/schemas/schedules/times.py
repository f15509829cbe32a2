"""The times of a schedule: cron, interval, once, or computed by code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice, takewhile

from penstock.config.sections.schedules import TOLERANCE, ScheduleSettings
from penstock.schemas.schedules.calendars import BusinessDays
from penstock.schemas.schedules.computed import computed_times
from penstock.schemas.schedules.cron import Cron, localized

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_AT_ONCE = 500
"""Missed times that one round makes jobs for; the rest follow in the next rounds."""
_REACHES = (timedelta(minutes=2), timedelta(hours=2), timedelta(days=2), timedelta(days=64))


class Times:
    """The times at which a schedule fires.

    Raises:
        ConfigError: its cron rule is wrong or never fires, its calendar does not exist, or its times are computed by
            code that is not imported here.
    """

    def __init__(self, settings: ScheduleSettings) -> None:
        self._settings = settings
        self._cron: Cron | None = None
        self._following: tuple[datetime | None, datetime | None] = (None, None)
        zone = settings.zone
        if settings.cron is not None:
            days = None if settings.calendar is None else BusinessDays(settings.calendar)
            self._cron = Cron(settings.cron, zone, days, settings.closed or "skip")
        if settings.times is not None:
            self._compute = computed_times(settings.times)
        self._start, self._until = (
            None if time is None else localized(time, zone) for time in (settings.start, settings.until)
        )
        if settings.every is not None:
            self._anchor = EPOCH if settings.anchor is None else localized(settings.anchor, zone)

    def after(self, after: datetime) -> Iterator[datetime]:
        """The times after an aware time, in UTC, ascending. They may end."""
        after = after.astimezone(UTC)
        if self._start is not None and after < self._start:
            after = self._start - timedelta(microseconds=1)
        times, until = self._after(after), self._until
        return times if until is None else takewhile(lambda time: time < until, times)

    def _after(self, after: datetime) -> Iterator[datetime]:
        settings = self._settings
        if self._cron is not None:
            return self._cron.after(after)
        if settings.at is not None:
            at = localized(settings.at, settings.zone)
            return iter([at] if at > after else [])
        if settings.times is not None:
            return self._computed(after)
        assert settings.every is not None
        return self._steps(settings.every, after)

    def _steps(self, every: timedelta, after: datetime) -> Iterator[datetime]:
        # Counted from the anchor each time, so that no error adds up.
        for number in count((after - self._anchor) // every + 1):
            try:
                yield self._anchor + number * every
            except OverflowError:  # after the year 9999
                return

    def _computed(self, after: datetime) -> Iterator[datetime]:
        while (time := self._compute(after)) is not None and time > after:
            yield time
            after = time

    def first(self, now: datetime, last: datetime | None = None) -> datetime | None:
        """The first time of a schedule that starts now. It may have passed only with `at` and `catch_up`.

        Arguments:
            last: the last time of this schedule that fired, in an earlier life; None: none did.
        """
        settings = self._settings
        if settings.at is None or settings.catch_up is None:
            return self.next(now)
        return self.next(max(now - settings.catch_up, last or EPOCH))

    def next(self, after: datetime) -> datetime | None:
        """The first time of `after`. The last result is cached, so that a caller can compute it ahead of time."""
        start, following = self._following
        if start != after:
            following = next(self.after(after), None)
            self._following = (after, following)
        return following

    def choose(self, first: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
        """The times from `first` until now that make a job, and the next time.

        A time is *missed* when it is over a minute late, or when the next time has come too.
        """
        settings = self._settings
        following = self.next(first)
        if following is None or following > now:  # as it mostly is
            return [first] if self._is_wanted(first, now) else [], following
        if settings.misfire == "all":
            oldest = first if settings.catch_up is None else max(first, now - settings.catch_up)
            begin = [first] if oldest == first else []
            due = [*begin, *takewhile(lambda time: time <= now, islice(self.after(oldest), MOST_AT_ONCE - len(begin)))]
            return due, self.next(due[-1] if due else now)
        newest = self._newest(first, now)
        return [newest] if self._is_wanted(newest, now) else [], self.next(newest)

    def _is_wanted(self, newest: datetime, now: datetime) -> bool:
        """Whether a time makes a job, for itself and for the times missed before it."""
        late, settings = now - newest, self._settings
        if late <= TOLERANCE:
            return True
        return settings.misfire != "skip" and (settings.catch_up is None or late <= settings.catch_up)

    def _newest(self, first: datetime, now: datetime) -> datetime:
        """The latest time until now. The search goes from near to far, so that a year does not take a million steps."""
        for reach in _REACHES:
            if now - reach > first and (times := self.until(now - reach, now)):
                return times[-1]
        return [first, *self.until(first, now)][-1]

    def until(self, after: datetime, until: datetime, most: int | None = None) -> list[datetime]:
        """The times after `after` and up to `until`, at most `most`."""
        return list(takewhile(lambda time: time <= until, islice(self.after(after), most)))


def jitter_offset(name: str, jitter: timedelta) -> timedelta:
    """The delay of a schedule's firings: the same each time and on every machine, to the millisecond."""
    if not jitter:
        return timedelta()
    fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return timedelta(milliseconds=int(jitter / timedelta(milliseconds=1) * fraction))
