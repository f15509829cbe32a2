"""`beat_schedule` of an application as schedules: each time fires once, however many dispatchers run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import celery
from celery.schedules import BaseSchedule, crontab, maybe_schedule, schedule, solar
from celery.utils.time import maybe_make_aware
from kombu.exceptions import EncodeError
from kombu.serialization import dumps

from penstock.config.settings import Settings
from penstock.producers.contrib.celery import lane
from penstock.schemas.schedules.computed import register_times
from penstock.schemas.schedules.decorator import ScheduleDeclaration, declarations
from penstock.schemas.schedules.times import EPOCH
from penstock.schemas.wire.celery_tasks import task_fields
from penstock.workers.engines.celery.adopted.tasks import queue_of

_SCHEDULER = "celery.beat:PersistentScheduler"
_CLEANUP = "celery.backend_cleanup"
ONLY_BEATS = "let celery beat run on for it alone"
REFUSED = (ValueError, LookupError, EncodeError)
"""Errors of `schedule_values`."""
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day_of_month", 1, 31), ("month_of_year", 1, 12), ("day_of_week", 0, 6))
"""Of a crontab, in the order of a cron rule, with the smallest and the largest value."""
_SHORTEST = timedelta(milliseconds=100)
_ROUTE = ("queue", "exchange", "routing_key")
_TRIES = 10
_STEP = timedelta(minutes=1)


def declare_schedules(app: celery.Celery, name: str, settings: Settings) -> Iterator[str]:
    """Declare a schedule for each entry of `beat_schedule`, under its name there.

    Yields:
        A line for each entry that no schedule can be made of, or that has options without effect.
    """
    conf = app.conf
    if conf.beat_scheduler != _SCHEDULER:
        yield f"beat_scheduler = {conf.beat_scheduler!r}: entries that it keeps elsewhere are not read; {ONLY_BEATS}"
    elif "django_celery_beat.models" in sys.modules:
        yield (
            "django-celery-beat is installed: its tables are read if beat_scheduler is "
            "'django_celery_beat.schedulers:DatabaseScheduler'"
        )
    entries = dict(conf.beat_schedule)
    if conf.result_expires and not app.backend.supports_autoexpire:  # as celery beat adds it
        entries.setdefault(_CLEANUP, {"task": _CLEANUP, "schedule": crontab("0", "4")})
    for key, entry in entries.items():
        try:
            values, ignored = schedule_values(app, dict(entry), settings)
            declare(key, name.partition(":")[0], f"beat_schedule of {name}", values)
        except REFUSED as error:
            yield f"beat_schedule {key!r} is left out: {error}; {ONLY_BEATS}"
            continue
        if ignored:
            yield f"beat_schedule {key!r}: its options {', '.join(sorted(ignored))} have no effect in a schedule"


def declare(key: str, module: str, where: str, values: dict[str, Any]) -> None:
    """Declare a schedule, in place of what the same application has declared under its name.

    Raises:
        ValueError: other code has declared the name.
    """
    if (other := declarations.get(key)) is not None and other.where != where:
        raise ValueError(f"{other.where} declares this name, too; rename one of them")
    new = ScheduleDeclaration(key, module, where, values)
    if new != other:
        declarations[key] = new


def schedule_values(
    app: celery.Celery, entry: Mapping[str, Any], settings: Settings
) -> tuple[dict[str, Any], Collection[str]]:
    """Values of a schedule, and the names of options that it cannot have.

    Arguments:
        entry: as in `beat_schedule`.

    Raises:
        ValueError: the rule is not one that schedules have; LookupError: the application has no such task or queue;
            EncodeError: JSON cannot hold the arguments.
    """
    task = app.tasks.get(entry["task"])
    if task is None:
        raise LookupError(f"the application has no task {entry['task']!r}")
    options = {option: value for option, value in (entry.get("options") or {}).items() if value is not None}
    own = queue_of(app, task)
    queue = queue_of(app, task, {name: options.pop(name) for name in _ROUTE if name in options})
    values: dict[str, Any] = {} if queue == own else {"queue": queue}
    priority = options.pop("priority", None)
    if priority is not None:
        values["priority"] = lane(priority, settings)
    if "expires" in options:
        values |= _expiry(app, options.pop("expires"))
    content_type, encoding, body = dumps([entry.get("args") or (), entry.get("kwargs") or {}, {}], "json")  # type: ignore[no-untyped-call]
    properties = {"content_type": content_type, "content_encoding": encoding, "priority": priority}
    payload = task_fields(
        options.pop("headers", {}), properties | {"delivery_info": {"routing_key": queue}}, body.encode()
    )
    # As celery beat: the next time fires while the former one runs, and of times that were missed the last one does.
    values |= {"kind": task.name, "payload": payload, "overlap": "allow", **_rule(app, entry["schedule"])}
    return values, options.keys()


def _expiry(app: celery.Celery, expires: Any) -> dict[str, Any]:
    """When the jobs expire: after so many seconds, or at a time, from which on there are none."""
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if isinstance(expires, datetime):
        return {"until": maybe_make_aware(expires, app.timezone).astimezone(UTC)}
    period = expires if isinstance(expires, timedelta) else timedelta(seconds=expires)
    if period <= timedelta():
        raise ValueError(f"with expires = {expires!r} its tasks would never run")
    return {"expires_in": period}


def _rule(app: celery.Celery, rule: Any) -> dict[str, Any]:
    if isinstance(rule, bool) or not isinstance(rule, int | float | timedelta | BaseSchedule):
        raise ValueError(f"{rule!r} is not a schedule of Celery's, a period, or a number of seconds")
    rule = maybe_schedule(rule, app=app)
    if (at := getattr(rule, "clocked_time", None)) is not None:
        return {"at": at.astimezone(UTC)}
    if _computes_as(crontab, rule) and (cron := _cron(rule)) is not None:
        return {"cron": cron, "timezone": str(rule.tz)}
    if not _computes_as(schedule, rule):
        return {"times": _register(rule), "timezone": str(rule.tz)}
    period = rule.run_every
    if period < _SHORTEST or period % timedelta(milliseconds=1):
        raise ValueError(f"its period of {period.total_seconds():g} s is not 0.1 s or more, in whole milliseconds")
    return {"every": period}


def _computes_as(kind: type[BaseSchedule], rule: BaseSchedule) -> bool:
    return isinstance(rule, kind) and type(rule).remaining_estimate is kind.remaining_estimate


def _cron(rule: crontab) -> str | None:
    """The cron rule; None: it names days of the month and of the week, of which cron rules want either, Celery both."""
    fields = [(getattr(rule, name), range(least, most + 1)) for name, least, most in _FIELDS]
    minute, hour, day, month, weekday = ("*" if values >= set(all_) else _list(values) for values, all_ in fields)
    return None if day != "*" and weekday != "*" else f"{minute} {hour} {day} {month} {weekday}"


def _list(values: Collection[int]) -> str:
    return ",".join(map(str, sorted(values)))


def _register(rule: BaseSchedule) -> str:
    """Let dispatchers use the times that Celery computes. Returns their name.

    Raises:
        ValueError: it cannot be computed, or its name would be another one in each process.
    """
    kind: Any = type(rule)
    if kind.__repr__ is object.__repr__ or kind.remaining_estimate is BaseSchedule.remaining_estimate:
        raise ValueError(
            f"a schedule of type {kind.__qualname__} needs remaining_estimate(), and a __repr__ that says its rule"
        )
    compute = CelerysTimes(rule)
    try:
        first = compute(datetime.now(UTC))
    except Exception as error:
        raise ValueError(f"{rule!r}: {type(error).__name__}: {error}") from error
    if first is None:
        raise ValueError(f"{rule!r} never fires")
    name = " ".join(f"{kind.__module__}.{kind.__qualname__} {rule!r} in {rule.tz}".split())
    register_times(name, compute)
    return name


class CelerysTimes:
    """The times of a schedule of Celery's, by its own code, in whole seconds."""

    def __init__(self, rule: BaseSchedule) -> None:
        self._rule, self._now, self._lock = rule, EPOCH, threading.Lock()
        rule.nowfun = lambda: self._now
        # The sun's are found by approximation, which may find the same one again.
        self._least = _STEP if isinstance(rule, solar) else timedelta()

    def __call__(self, after: datetime) -> datetime | None:
        """The first time after a time, in UTC; None: Celery names none."""
        with self._lock:
            for number in range(_TRIES):
                start = after.astimezone(UTC) + number * _STEP
                self._now = start.astimezone(self._rule.tz)
                time: datetime = start + self._rule.remaining_estimate(self._now)
                if time.microsecond:
                    time = time.replace(microsecond=0) + timedelta(seconds=1)
                if time > after + self._least:
                    return time
        return None
