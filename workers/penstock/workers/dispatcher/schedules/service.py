"""Fires schedules. However many dispatchers run, each time of a schedule makes one job.

The rows of the ledger fire, so that all dispatchers agree, whatever file each was started with. This service keeps them
those of the file and of the code.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings, load_settings
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.schedules.due import any_due, due_rows, upcoming_rows
from penstock.ledger.schedules.firing import BATCH, Fired, any_waiting, fire, release_waiting, waiting_schedules
from penstock.ledger.schedules.rules import Schedule, schedule_of_row
from penstock.ledger.sql.database import Database
from penstock.producers.traces.sending import Firings
from penstock.schemas.schedules.decorator import ScheduleDeclaration, declarations
from penstock.schemas.schedules.times import EPOCH
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.dispatcher.schedules.declarations import read_schedules

_CHECK_SECONDS = 0.5
"""Between two checks whether the file has changed, or a job has ended that another one waits for."""
_AHEAD = timedelta(seconds=30)
"""Schedules due within that time are read, and their next times computed, before it comes."""
_READ_AT_ONCE = 50
_MOST_CACHED = 100_000
_PAUSE_SECONDS = 0.1


class Schedules(Poller):
    """Fires what is due, by the clock of the ledger's database.

    Arguments:
        settings: the file they were read from is watched; a change there takes effect at once.
        wakeup: set when there are new jobs to be sent.
        fired: called with each firing.
    """

    name = "schedules"

    def __init__(
        self,
        database: Database,
        settings: Settings,
        wakeup: threading.Event | None = None,
        *,
        fired: Fired | None = None,
    ) -> None:
        super().__init__()
        self._fired = fired
        self._database, self._wakeup = database, wakeup or threading.Event()
        self._file = _SettingsFile(settings)
        self._is_declared = False
        self._declared: dict[str, ScheduleDeclaration] = {}
        self._idle_seconds, self._is_watched, self._look_at = _PAUSE_SECONDS, False, 0.0
        self._checked = 0.0
        self._cache: dict[tuple[str, str], Schedule] = {}
        self._broken = 0
        """Number of schedules in the cache that cannot be fired here."""
        self._prepared = (EPOCH, "")
        """The last due time, and name, up to which schedules have been read."""

    def work(self) -> sa.ColumnElement[bool]:
        return sa.or_(any_due(), any_waiting())

    def be_watched(self, interval_seconds: float) -> None:
        self._idle_seconds, self._is_watched = interval_seconds, True

    def run_once(self) -> bool:
        looks = self.woken or time.monotonic() >= self._look_at
        if time.monotonic() - self._checked >= _CHECK_SECONDS:
            self._checked = time.monotonic()
            if self._file.has_changed() or declarations != self._declared:
                self._is_declared = False
            if looks and (names := waiting_schedules(self._database)):
                firings = Firings()
                release_waiting(self._database, names, self._read, stamp=firings.stamp, fired=self._fired)
                firings.end()
                self._wakeup.set()
        if not self._is_declared:
            self._declared = dict(declarations)
            self._forget_unregistered()
            declare_schedules(self._database, read_schedules(self._file.settings))
            self._is_declared = True
        elif not looks:
            self.interval_seconds = min(max(self._look_at - time.monotonic(), 0.0), _CHECK_SECONDS)
            return False
        began = time.monotonic()
        # Schedules of kinds that are not imported here stay due, for other dispatchers.
        now, rows = due_rows(self._database, timedelta(seconds=self._idle_seconds), BATCH + self._broken)
        due = [self._read(row) for row in rows if row.due_at <= now]
        good = [schedule for schedule in due if schedule.job is not None]
        more = False
        if good:
            firings = Firings()
            more = fire(self._database, *good, stamp=firings.stamp, fired=self._fired)
            firings.end()
            self._wakeup.set()
        longest = self._idle_seconds
        if not due and self._prepare(now):
            longest = _PAUSE_SECONDS
        pause = _pause(now, rows, longest)
        self.interval_seconds = max(min(pause, _CHECK_SECONDS) - (time.monotonic() - began), 0.0)
        self._look_at = began + pause if self._is_watched else 0.0
        return more or len(good) >= BATCH

    def _prepare(self, now: datetime) -> bool:
        """Read some of what is due soon, so that it need not be read when its time has come. Returns whether there is
        more."""
        after = max(self._prepared, (now, ""))
        rows = upcoming_rows(self._database, after, now + _AHEAD, _READ_AT_ONCE)
        for row in rows:
            schedule = self._read(row)
            if schedule.times is not None and row.next_at is not None:
                schedule.times.next(row.next_at)
            self._prepared = (row.due_at, row.name)
        return len(rows) == _READ_AT_ONCE

    def _forget_unregistered(self) -> None:
        """Read schedules again whose times code has perhaps registered only now."""
        for key, schedule in list(self._cache.items()):
            if schedule.times is None and schedule.settings is not None and schedule.settings.times is not None:
                del self._cache[key]
                self._broken -= 1

    def _read(self, row: Any) -> Schedule:
        key = (row.name, row.rule)
        if key not in self._cache:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
                self._broken = 0
            self._cache[key] = schedule = schedule_of_row(row)
            if schedule.error is not None:
                self._broken += 1
                log.error("%s; it does not fire here", schedule.error)
        return self._cache[key]


def _pause(now: datetime, rows: Sequence[Any], longest: float) -> float:
    """Seconds until the first row that is due soon, at most the longest pause."""
    upcoming = [row.due_at for row in rows if row.due_at > now]
    return min(float((min(upcoming) - now).total_seconds()), longest) if upcoming else longest


class _SettingsFile:
    """The file that settings were read from, watched for changes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stamp: tuple[int, ...] | None = None  # it may have changed since it was read

    def has_changed(self) -> bool:
        """Whether there are other settings now. A file that cannot be read changes nothing."""
        if (stamp := _stamp(self.settings.file)) == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.settings = load_settings(self.settings.file)
        except ConfigError as error:
            log.error("schedules stay as they are: %s", error)
            return False
        return True


def _stamp(file: Path | None) -> tuple[int, ...] | None:
    try:
        status = os.stat(file) if file is not None else None
    except OSError:
        status = None
    return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)
