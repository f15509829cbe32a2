"""Schedules as Sentry's cron monitors: a check-in when a schedule's job starts, and one when it has ended.

The dispatcher that fires a schedule follows the job, since only it knows whose job it is. The id of a check-in is that
of the job, so a dispatcher that takes over after a restart goes on with the same check-in.
"""

from __future__ import annotations

import hashlib
import math
import queue
import re
import uuid
from datetime import timedelta
from typing import Any

from penstock.config.settings import Settings
from penstock.ledger.schedules.firings import job_times, recent_firings, schedule_rows
from penstock.ledger.schedules.rules import Schedule, schedule_of_row
from penstock.ledger.sql.database import Database
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import FINAL, State
from penstock.workers.dispatcher.poller import Poller
from penstock.workers.telemetry.failures.sentry import sdk

_MOST = 5_000
"""Jobs that are followed at a time."""
_LATELY = timedelta(minutes=5)
"""A job that ended so lately may have done so while no dispatcher followed it: its end is reported, perhaps again."""
_LONGEST_SLUG = 50
_UNITS = (("week", timedelta(weeks=1)), ("day", timedelta(days=1)), ("hour", timedelta(hours=1)))


class CronMonitors(Poller):
    """Follows the jobs of schedules. Without Sentry, or with `[sentry] schedules = false`, it only sleeps."""

    name = "cron monitors"
    interval_seconds = 2.0

    def __init__(self, database: Database, settings: Settings) -> None:
        super().__init__()
        self._database, self._wanted = database, settings.sentry.schedules
        self._new: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._followed: dict[str, str] = {}
        """Id of a job → its schedule."""
        self._started: set[str] = set()
        self._is_resumed = False

    def follow(self, schedule: str, job_id: str) -> None:
        """Follow a job that a schedule has just made. Safe from any thread."""
        if self._wanted and self._new.qsize() < _MOST and sdk() is not None:
            self._new.put((schedule, job_id))

    def run_once(self) -> bool:
        if not self._wanted or (sentry := sdk()) is None:
            return False
        if not self._is_resumed:
            self._followed |= {job_id: name for name, job_id in recent_firings(self._database, _LATELY, _MOST)}
            self._is_resumed = True
        while not self._new.empty() and len(self._followed) < _MOST:
            name, job_id = self._new.get()
            self._followed[job_id] = name
        if self._followed:
            self._look(sentry)
        return False

    def _look(self, sentry: Any) -> None:
        rows = {row.id: row for row in job_times(self._database, list(self._followed))}
        changed = [(job_id, row) for job_id, row in rows.items() if self._has_changed(row)]
        names = sorted({self._followed[job_id] for job_id, _ in changed})
        schedules = {row.name: schedule_of_row(row) for row in schedule_rows(self._database, names)} if names else {}
        for job_id, row in changed:
            schedule = schedules.get(self._followed[job_id])
            config = None if schedule is None else monitor_config(schedule)
            if schedule is not None and config is not None:
                _check_in(sentry, schedule.name, row, config)
            self._started.add(job_id)
        for job_id in [job_id for job_id in self._followed if job_id not in rows or rows[job_id].state in FINAL]:
            del self._followed[job_id]  # one without a row is of a kind that keeps none
            self._started.discard(job_id)

    def _has_changed(self, row: Any) -> bool:
        return row.state in FINAL or (row.started_at is not None and row.id not in self._started)


def _check_in(sentry: Any, schedule: str, row: Any, config: dict[str, Any]) -> None:
    status, duration = "in_progress", None
    if row.state in FINAL:
        status = "ok" if row.state in (State.SUCCEEDED, State.DISCARDED) else "error"
        if row.started_at is not None and row.finished_at is not None:
            duration = max((row.finished_at - row.started_at).total_seconds(), 0.0)
    sentry.crons.capture_checkin(
        monitor_slug=slug_of(schedule),
        check_in_id=uuid.UUID(row.id).hex,
        status=status,
        duration=duration,
        monitor_config=config,
    )


def slug_of(name: str) -> str:
    """Name of a schedule → slug of its monitor: at most 50 of a to z, 0 to 9, `_` and `-`."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")
    if slug and len(slug) <= _LONGEST_SLUG:
        return slug
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{slug[: _LONGEST_SLUG - 9]}-{mark}".strip("-")


def monitor_config(schedule: Schedule) -> dict[str, Any] | None:
    """The monitor of a schedule; None: Sentry has none for its rule, as for seconds, closed days, a single time or
    computed ones."""
    settings = schedule.settings
    if settings is None or settings.calendar is not None or (settings.cron is None and settings.every is None):
        return None
    if settings.cron is not None:
        if not settings.cron.startswith("@") and len(settings.cron.split()) != 5:
            return None
        rule: dict[str, Any] = {"type": "crontab", "value": settings.cron}
    else:
        assert settings.every is not None
        minute = timedelta(minutes=1)
        if settings.every % minute:
            return None
        unit, size = next(((unit, size) for unit, size in _UNITS if not settings.every % size), ("minute", minute))
        rule = {"type": "interval", "value": settings.every // size, "unit": unit}
    margin = 1 + math.ceil(settings.jitter / timedelta(minutes=1))
    config: dict[str, Any] = {"schedule": rule, "timezone": settings.timezone, "checkin_margin": margin}
    kind = registry.find(settings.kind)
    if kind is not None and kind.timeout is not None:
        config["max_runtime"] = max(1, math.ceil(kind.timeout / timedelta(minutes=1)))
    return config
