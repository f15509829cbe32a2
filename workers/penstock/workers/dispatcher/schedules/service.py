"""Fires schedules. However many dispatchers run, each time of a schedule makes one job.

What fires are the rows of the ledger, so that all dispatchers agree whatever file they were started with. `enter` makes
them those of the file and of the code; `firing` makes their jobs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings, load_settings
from penstock.ledger.schedules.commands import first_time, row_of
from penstock.ledger.schedules.firing import BATCH, fire, release, waiting
from penstock.ledger.schedules.rules import Schedule, is_name, of_row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import schedules
from penstock.schemas.schedules.times import EPOCH
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.dispatcher.schedules.declared import read_schedules

_LOOK_SECONDS = 0.5
"""Between two looks whether the file has changed, or a job has ended that another one waits for."""
_AHEAD = timedelta(seconds=30)
"""Schedules due within that time are read, and their next times worked out, before it comes."""
_READ_AT_ONCE = 50
_MOST_KEPT = 100_000
_PAUSE_SECONDS = 0.1
_TIMING = ("cron", "every", "anchor", "at", "timezone", "calendar", "closed")


class Schedules(Poller):
    """Fires what is due, in the ledger's time.

    Arguments:
        settings: the file they were read from is watched; what changes there takes effect at once.
        news: set when there are new jobs to be sent.
    """

    name = "schedules"

    def __init__(self, database: Database, settings: Settings, news: threading.Event | None = None) -> None:
        super().__init__()
        self._database, self._news = database, news or threading.Event()
        self._file = _File(settings)
        self._entered = False
        self._looked = 0.0
        self._known: dict[tuple[str, str], Schedule] = {}
        self._unfit = 0
        """How many of those cannot be fired here."""
        self._ready = (EPOCH, "")
        """Up to which due time, and name, schedules have been read."""

    def work(self) -> bool:
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._file.has_changed():
                self._entered = False
            if names := waiting(self._database):
                release(self._database, names, self._read)
                self._news.set()
        if not self._entered:
            enter(self._database, read_schedules(self._file.settings))
            self._entered = True
        began = time.monotonic()
        now, rows = self._database.read(self._look)
        due = [self._read(row) for row in rows if row.due_at <= now]
        good = [one for one in due if one.job is not None]
        more = bool(good) and fire(self._database, *good)
        if good:
            self._news.set()
        if not due:
            self._get_ready(now)
        self.interval_seconds = max(_pause(now, rows) - (time.monotonic() - began), 0.0)
        return more or len(good) >= BATCH

    def _look(self, connection: sa.Connection) -> tuple[datetime, list[Any]]:
        """The time, and the rows due by then or soon after, of which this dispatcher can fire some."""
        now: datetime = connection.execute(sa.select(from_now())).scalar_one()
        columns = (schedules.c[name] for name in ("name", "rule", "source", "module", "due_at"))
        select = sa.select(*columns).where(schedules.c.due_at <= now + timedelta(seconds=_PAUSE_SECONDS))
        # Those of kinds that are not imported here stay due, for other dispatchers.
        return now, list(connection.execute(select.order_by(schedules.c.due_at).limit(BATCH + self._unfit)))

    def _get_ready(self, now: datetime) -> None:
        """Read some of what is due soon, so that it need not be when its time has come."""
        due, name = schedules.c.due_at, schedules.c.name
        at, last = max(self._ready, (now, ""))
        further = (due >= at, due <= now + _AHEAD, sa.or_(due > at, name > last))
        select = sa.select(schedules).where(*further).order_by(due, name).limit(_READ_AT_ONCE)
        for row in self._database.read(lambda connection: connection.execute(select).all()):
            schedule = self._read(row)
            if schedule.times is not None and row.next_at is not None:
                schedule.times.next(row.next_at)
            self._ready = (row.due_at, row.name)

    def _read(self, row: Any) -> Schedule:
        key = (row.name, row.rule)
        if key not in self._known:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
                self._unfit = 0
            self._known[key] = schedule = of_row(row)
            if schedule.error is not None:
                self._unfit += 1
                log.error("%s; it does not fire here", schedule.error)
        return self._known[key]


def _pause(now: datetime, rows: Sequence[Any]) -> float:
    """Until the first row that is due soon, in seconds."""
    coming = [row.due_at for row in rows if row.due_at > now]
    return float((min(coming) - now).total_seconds()) if coming else _PAUSE_SECONDS


class _File:
    """The file that settings were read from, watched."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stamp: tuple[int, ...] | None = None  # it may have changed since it was read

    def has_changed(self) -> bool:
        """Whether there are other settings now. What cannot be read changes nothing."""
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
        found = os.stat(file) if file is not None else None
    except OSError:
        found = None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def enter(database: Database, rules: Sequence[Schedule]) -> None:
    """Make the ledger's schedules those of the file and the code; those made at run time stay.

    One whose times are as they were keeps its next one, so that times which passed while nobody was up count as missed;
    a new or changed one starts from now. A paused one stays so. One of the code goes when a dispatcher that imports its
    module has it no more.
    """
    for rule in rules:
        if rule.error is not None:
            log.error("%s; it does not fire, the others do", rule.error)
    rules = [rule for rule in rules if is_name(rule.name)]
    select = sa.select(schedules).order_by(schedules.c.name)

    def write(connection: sa.Connection) -> None:
        gone, entries = _differences(connection, database.locked(select), rules)
        for start in range(0, len(gone), BATCH):
            connection.execute(sa.delete(schedules).where(schedules.c.name.in_(gone[start : start + BATCH])))
        if entries:
            connection.execute(database.upsert(schedules, keep=_KEPT), entries)

    # Looked at without locks first: mostly a dispatcher that starts finds all as it should be.
    if any(database.read(lambda connection: _differences(connection, select, rules))):
        database.write(write)


def _differences(
    connection: sa.Connection, select: sa.Select[Any], rules: Sequence[Schedule]
) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of rows that are gone, and the rows that are new or changed."""
    now: datetime = connection.execute(sa.select(from_now())).scalar_one()
    known = {row.name: row for row in connection.execute(select)}
    names = {rule.name for rule in rules}
    gone = [row.name for row in known.values() if row.name not in names and _is_ours(row)]
    entries = [_entry(rule, known.get(rule.name), now) for rule in rules]
    return gone, [one for one in entries if one is not None]


_KEPT = ("last_at", "last_job_id", "waiting_at", "paused_at")


def _is_ours(row: Any) -> bool:
    """Whether a row that this dispatcher has no rule for is gone, and not just unknown here."""
    return row.source == "file" or (row.source == "code" and row.module in sys.modules)


def _entry(rule: Schedule, row: Any, now: datetime) -> dict[str, Any] | None:
    """The row of a rule; None: it is as it should be."""
    if row is None:
        return row_of(rule, first_time(rule, now))
    # Even if it is wrong here: another dispatcher may have imported what this one lacks, and fire it.
    goes_on = row.next_at is not None and rule.times is not None
    if goes_on and (row.rule == rule.rule or _timing(of_row(row)) == _timing(rule)):
        entry = row_of(rule, row.next_at)
    else:
        entry = row_of(rule, first_time(rule, now))
    if row.paused_at is not None:
        entry["due_at"] = None
    return None if all(getattr(row, name) == value for name, value in entry.items()) else entry


def _timing(rule: Schedule) -> list[Any]:
    return [getattr(rule.settings, name, None) for name in _TIMING]
