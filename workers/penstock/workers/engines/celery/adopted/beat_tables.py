"""The tables of django-celery-beat as schedules: a service of the dispatcher that follows their changes.

It reads them through the application's own models, and needs django-celery-beat only where the application has it.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import celery
from celery.beat import Scheduler
from celery.exceptions import ImproperlyConfigured
from celery.schedules import crontab
from celery.utils.imports import load_extension_class_names, symbol_by_name
from kombu.utils.json import loads

from penstock.config.errors import ConfigError
from penstock.config.sections.schedules import ScheduleSettings
from penstock.config.settings import Settings
from penstock.ledger.schedules.firings import last_times
from penstock.ledger.sql.database import Database
from penstock.schemas.schedules.decorator import declarations, sources
from penstock.schemas.schedules.times import EPOCH, Times
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.engines.celery.adopted.beat import ONLY_BEATS, REFUSED, declare, schedule_values

_READ_SECONDS = 300.0
"""The longest time between two readings: not every change of the tables is noted there."""
_ALWAYS = timedelta(days=36_525)
_OPTIONS = ("queue", "exchange", "routing_key", "priority")
_CLEANUP = "celery.backend_cleanup"
_OVERLAP = timedelta(minutes=1)


def tables_scheduler(app: celery.Celery) -> type[Scheduler] | None:
    """The application's scheduler, if it is `DatabaseScheduler` of django-celery-beat, or a subclass of it."""
    name = app.conf.beat_scheduler
    try:
        scheduler = symbol_by_name(name, aliases=dict(load_extension_class_names("celery.beat_schedulers")))
        if "django_celery_beat" not in sys.modules:
            return None
        from django_celery_beat.schedulers import DatabaseScheduler
    except Exception as error:  # such as Django's, where it is not set up
        log.error("beat_scheduler = %r cannot be imported: %s: %s", name, type(error).__name__, error)
        return None
    return scheduler if issubclass(scheduler, DatabaseScheduler) else None


class BeatTables(Poller):
    """Declares the entries of the tables, and writes back when they fired.

    While the tables cannot be read, their schedules go on as they were.
    """

    name, essential = "django-celery-beat", False
    interval_seconds = 2.0

    def __init__(
        self, app: celery.Celery, app_name: str, scheduler: type[Scheduler], settings: Settings, database: Database
    ) -> None:
        super().__init__()
        self._app, self._settings, self._database = app, settings, database
        self._where = f"django-celery-beat of {app_name}"
        self._entry, self._model, self._changes = scheduler.Entry, scheduler.Model, scheduler.Changes
        self._is_filled = self._is_away = False
        self._change: Any = None
        self._read_at: float | None = None
        self._lines: set[str] = set()
        self._written: dict[str, datetime] = {}
        """Name → its last firing that the tables have."""

    def run_once(self) -> bool:
        from django.db import Error, close_old_connections

        try:
            close_old_connections()
            self._follow()
        except Error as error:
            sources.discard(self._where)  # what is gone may be in the tables
            if not self._is_away:
                log.error("%s: the tables cannot be read, schedules go on as they are: %s", self.name, error)
            self._is_away = True
        else:
            if self._is_away:
                log.warning("%s: the tables can be read again", self.name)
            self._is_away = False
        return False

    def close(self) -> None:
        from django.db import connections

        connections.close_all()

    def _follow(self) -> None:
        if not self._is_filled:
            self._fill()
            self._is_filled = True
        change, now = self._changes.last_change(), time.monotonic()
        if self._read_at is None or self._is_away or change != self._change or now - self._read_at >= _READ_SECONDS:
            self._read()
            self._change, self._read_at = change, now
        self._write_back()

    def _fill(self) -> None:
        """Write the entries of `beat_schedule` into the tables, as celery beat does when it starts."""
        from django.db import Error

        entries = dict(self._app.conf.beat_schedule)
        if self._app.conf.result_expires:
            cleanup = {"task": _CLEANUP, "schedule": crontab("0", "4"), "options": {"expire_seconds": 12 * 3600}}
            entries.setdefault(_CLEANUP, cleanup)
        for key, entry in entries.items():
            try:
                self._entry.from_entry(key, app=self._app, **entry)
            except Error:
                raise
            except Exception as error:  # as celery beat: whatever its code and the models raise
                reason = f"{type(error).__name__}: {error}"
                log.warning("%s: beat_schedule %r is left out: %s; %s", self._where, key, reason, ONLY_BEATS)

    def _read(self) -> None:
        """Declare what the tables have, and no more what they had. Says once what cannot be a schedule."""
        lines, names = set(), set()
        for model in self._model.objects.enabled():
            try:
                values, ignored = self._values(model)
                declare(model.name, self._where, self._where, values)
            except (*REFUSED, TypeError, AttributeError, ConfigError, ImproperlyConfigured) as error:
                reason = " ".join(str(error).split())
                lines.add(f"entry {model.name!r} is left out: {reason}; {ONLY_BEATS}")
                continue
            names.add(model.name)
            if ignored:
                lines.add(f"entry {model.name!r}: its options {', '.join(sorted(ignored))} have no effect")
        for key, declaration in list(declarations.items()):
            if declaration.where == self._where and key not in names:
                del declarations[key]
        sources.add(self._where)
        for line in sorted(lines - self._lines):
            log.warning("%s: %s", self._where, line)
        self._lines = lines

    def _values(self, model: Any) -> tuple[dict[str, Any], Any]:
        """An entry's values as a schedule, and names of options that it cannot have. Raises as `schedule_values`."""
        if model.scheduler is None:
            raise ValueError("it has no schedule")
        args, kwargs, headers = map(_read_json, (model.args or "[]", model.kwargs or "{}", model.headers or "{}"))
        options = {name: getattr(model, name) for name in _OPTIONS} | {
            "expires": _aware(model.expires) or model.expire_seconds,
            "headers": headers | {"periodic_task_name": model.name},
        }
        entry = {"task": model.task, "schedule": model.schedule, "args": args, "kwargs": kwargs, "options": options}
        values, ignored = schedule_values(self._app, entry, self._settings)
        start = _aware(model.start_time)
        if model.one_off or "at" in values:
            values = _single(values, start, _aware(model.date_changed) or datetime.now(UTC))
        elif start is not None:
            values |= {"start": start} | ({"anchor": start} if "every" in values else {})
        return values, ignored

    def _write_back(self) -> None:
        """Note in the tables when entries fired, for those who look there, and disable those that fire once."""
        since = max(self._written.values(), default=EPOCH + _OVERLAP) - _OVERLAP
        new = {
            name: at
            for name, at in last_times(self._database, self._where, since).items()
            if self._written.get(name) != at
        }
        disabled = 0
        for name, at in new.items():
            rows = self._model.objects.filter(name=name)
            rows.update(last_run_at=_as_kept(at))  # not by save(), which would count as a change of the entry
            if (declaration := declarations.get(name)) is not None and declaration.values.get("at") == at:
                disabled += rows.filter(enabled=True).update(enabled=False, last_run_at=None)
        if disabled:
            self._changes.update_changed()
        self._written |= new


def _single(values: dict[str, Any], start: datetime | None, changed: datetime) -> dict[str, Any]:
    """The values of an entry that fires once, at its first time, also if that has passed when it is first read."""
    at = values.get("at")
    if at is None and "every" in values:
        at = start or changed + values["every"]
    elif at is None:
        after = changed if start is None else start - timedelta(microseconds=1)
        at = Times(ScheduleSettings.model_validate(values)).next(after)
        if at is None:
            raise ValueError("its time has passed")
    rest = {key: value for key, value in values.items() if key not in ("every", "cron", "times", "timezone")}
    return rest | {"at": at, "catch_up": _ALWAYS}


def _read_json(text: str) -> Any:
    """JSON as celery beat reads it, with types of kombu's."""
    return loads(text)  # type: ignore[no-untyped-call]


def _aware(value: datetime | None) -> datetime | None:
    from django_celery_beat.utils import make_aware

    return None if value is None else make_aware(value).astimezone(UTC)


def _as_kept(value: datetime) -> datetime:
    from django.conf import settings
    from django.utils.timezone import make_naive

    kept: datetime = value if settings.USE_TZ else make_naive(value)
    return kept
