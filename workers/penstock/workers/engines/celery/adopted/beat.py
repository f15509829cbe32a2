"""`beat_schedule` of an application as schedules: each time fires once, however many dispatchers run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

import celery
from celery.schedules import crontab, schedule
from kombu.exceptions import EncodeError
from kombu.serialization import dumps

from penstock.schemas.schedules.decorator import ScheduleDeclaration, declarations
from penstock.schemas.wire.celery_tasks import task_fields
from penstock.workers.engines.celery.adopted.tasks import queue_of

_SCHEDULER = "celery.beat:PersistentScheduler"
_CLEANUP = "celery.backend_cleanup"
_ONLY_BEATS = "let celery beat run on for it alone"
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day_of_month", 1, 31), ("month_of_year", 1, 12), ("day_of_week", 0, 6))
"""Of a crontab, in the order of a cron rule, with the smallest and the largest value."""


def declare_schedules(app: celery.Celery, name: str) -> Iterator[str]:
    """Declare a schedule for each entry of `beat_schedule`, under its name there.

    Yields:
        A line for each entry that no schedule can be made of, or that has options without effect.
    """
    conf = app.conf
    if conf.beat_scheduler != _SCHEDULER:
        yield f"beat_scheduler = {conf.beat_scheduler!r}: entries that it keeps elsewhere are not read; {_ONLY_BEATS}"
    entries = dict(conf.beat_schedule)
    if conf.result_expires and not app.backend.supports_autoexpire:  # as celery beat adds it
        entries.setdefault(_CLEANUP, {"task": _CLEANUP, "schedule": crontab("0", "4")})
    for key, entry in entries.items():
        try:
            values, ignored = _values(app, dict(entry))
        except (ValueError, LookupError, EncodeError) as error:
            yield f"beat_schedule {key!r} is left out: {error}; {_ONLY_BEATS}"
            continue
        where = f"beat_schedule of {name}"
        if (other := declarations.get(key)) is not None and other.where != where:
            yield f"beat_schedule {key!r} is left out: {other.where} declares this name, too; rename one of them"
            continue
        declarations[key] = ScheduleDeclaration(key, name.partition(":")[0], where, values)
        if ignored:
            yield f"beat_schedule {key!r}: its options {', '.join(sorted(ignored))} have no effect in a schedule"


def _values(app: celery.Celery, entry: dict[str, Any]) -> tuple[dict[str, Any], Collection[str]]:
    """Values of the schedule, and the names of options that it cannot have.

    Raises:
        ValueError: the rule is not one that schedules have; LookupError: the application has no such task; EncodeError:
            JSON cannot hold the arguments.
    """
    task = app.tasks.get(entry["task"])
    if task is None:
        raise LookupError(f"the application has no task {entry['task']!r}")
    content_type, encoding, body = dumps([entry.get("args") or (), entry.get("kwargs") or {}, {}], "json")  # type: ignore[no-untyped-call]
    properties = {"content_type": content_type, "content_encoding": encoding}
    payload = task_fields({}, properties | {"delivery_info": {"routing_key": queue_of(app, task)}}, body.encode())
    options = {option: value for option, value in (entry.get("options") or {}).items() if value is not None}
    if options.get("queue") == queue_of(app, task):
        del options["queue"]
    # As celery beat: the next time fires while the former one runs, and of times that were missed the last one does.
    return {"kind": task.name, "payload": payload, "overlap": "allow", **_rule(entry["schedule"])}, options.keys()


def _rule(rule: Any) -> dict[str, Any]:
    if isinstance(rule, crontab):
        return {"cron": _cron(rule), "timezone": str(rule.tz)}
    period = rule.run_every if type(rule) is schedule else rule
    if isinstance(period, int | float) and not isinstance(period, bool):
        period = timedelta(seconds=period)
    if not isinstance(period, timedelta):
        raise ValueError(f"a schedule of type {type(rule).__name__} has no counterpart")
    if period < timedelta(seconds=1) or period % timedelta(seconds=1):
        raise ValueError(f"its period of {period.total_seconds():g} s is not in whole seconds")
    return {"every": period}


def _cron(rule: crontab) -> str:
    fields = [(getattr(rule, name), range(least, most + 1)) for name, least, most in _FIELDS]
    minute, hour, day, month, weekday = ("*" if values >= set(all_) else _list(values) for values, all_ in fields)
    if day != "*" and weekday != "*":
        raise ValueError(
            f"{rule} names days of the month and of the week, of which Celery wants both, and cron rules either"
        )
    return f"{minute} {hour} {day} {month} {weekday}"


def _list(values: Collection[int]) -> str:
    return ",".join(map(str, sorted(values)))
