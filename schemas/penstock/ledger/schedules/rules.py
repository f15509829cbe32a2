"""A schedule, checked: its rule, zone, calendar, kind and payload, and the jobs it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import ValidationError

from penstock.config.errors import ConfigError, UndecodableMessage
from penstock.config.sections.schedules import ScheduleEntry, ScheduleSettings, WrongSchedule, read_entry
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Kind, checked_queue, registry
from penstock.schemas.schedules.cron import localized
from penstock.schemas.schedules.times import Times, jitter_offset
from penstock.schemas.wire.codec import Envelope, encode, explain

Source = Literal["file", "code", "made"]
Where = Callable[[Sequence[str]], str]
"""Key of the schedule → the beginning of a message about it."""

_LONGEST_NAME = 128
_SAMPLE = datetime(2026, 1, 5, 12, 34, 56, tzinfo=UTC)
"""For `time_field`; no midnight, which would do for a date too."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A checked schedule.

    Attributes:
        settings: as they were written; None if they are refused.
        rule: its definition as JSON, which shows whether the definition in the ledger is an older one.
        times: when it fires; None if that is wrong.
        job: the job that each firing sends, without its `time_field`; None if kind or payload are wrong.
        error: why it cannot fire, with file and line where there is one.
        offset: how much later than its times it fires.
        module: the one that declares it, if the source is `code`.
    """

    name: str
    settings: ScheduleSettings | None
    rule: str
    times: Times | None
    job: Job | None
    error: str | None
    offset: timedelta = timedelta()
    source: Source = "file"
    module: str | None = None

    def envelope(self, now: datetime, time: datetime) -> Envelope:
        """The envelope of a new job of this schedule, for one of its times.

        Raises:
            ValidationError: the kind refuses that time.
        """
        assert self.job is not None
        assert self.settings is not None
        job, kind, settings = self.job, self.job.kind(), self.settings
        if settings.time_field is not None:
            job = _job(kind, settings, time)
        expires_in = settings.expires_in or kind.expires_in
        ends = [now + expires_in] if expires_in else []
        if settings.until is not None:
            ends.append(localized(settings.until, settings.zone))
        return encode(
            job,
            queue=settings.queue,
            priority=settings.priority,
            sent_at=now,
            expires_at=min(ends, default=None),
        )


def check_schedule(
    name: str, entry: ScheduleEntry, where: Where, *, source: Source = "file", module: str | None = None
) -> Schedule:
    """Read a schedule; a fault in it becomes its `error`."""

    def refused(keys: Sequence[str], why: str, times: Times | None = None) -> Schedule:
        return Schedule(name, settings, rule, times, None, f"{where(keys)}: {why}", late, source, module)

    settings, late = (
        (entry, jitter_offset(name, entry.jitter)) if isinstance(entry, ScheduleSettings) else (None, timedelta())
    )
    rule = _rule(entry)
    if not is_name(name):
        return refused((), f"a name has 1 to {_LONGEST_NAME} printable characters")
    if isinstance(entry, WrongSchedule):
        return refused((entry.key,) if entry.key else (), entry.error)
    try:
        times = Times(entry)
    except ConfigError as error:
        key = "calendar" if str(error).startswith("unknown calendar") else "cron" if entry.cron else "times"
        return refused((key,), str(error))
    try:
        checked_queue(entry.queue or "default")
    except ValueError as error:
        return refused(("queue",), str(error), times)
    try:
        job = _job(registry[entry.kind], entry, _SAMPLE)
    except UndecodableMessage as error:
        return refused(("kind",), f"{error.detail}; import its module with --import", times)
    except ValidationError as error:
        return refused(("payload",), explain(error, kind=registry.find(entry.kind)), times)
    except ConfigError as error:
        return refused(("time_field",), str(error), times)
    return Schedule(name, entry, rule, times, job, None, late, source, module)


def is_name(name: str) -> bool:
    """Whether the ledger can keep a schedule of this name."""
    return bool(name.strip()) and len(name) <= _LONGEST_NAME and name.isprintable()


def schedule_of_row(row: Any) -> Schedule:
    """Row of the ledger → schedule."""
    return schedule_of_values(row.name, json.loads(row.rule), row.source, row.module)


def schedule_of_values(
    name: str, values: Mapping[str, Any], source: Source = "made", module: str | None = None
) -> Schedule:
    """JSON values → schedule, for one that is in no file."""
    entry = read_entry(dict(values))
    return check_schedule(name, entry, lambda _keys: f"schedule {name!r}", source=source, module=module)


def _rule(entry: ScheduleEntry) -> str:
    if isinstance(entry, WrongSchedule):
        return json.dumps(entry.values, sort_keys=True, default=str)
    return json.dumps(entry.model_dump(mode="json", exclude_defaults=True), sort_keys=True)


def _job(kind: Kind, settings: ScheduleSettings, time: datetime) -> Job:
    job_class: type[Job] = kind.job
    payload = json.loads(json.dumps(settings.payload, default=str))  # TOML has dates of its own
    if (field := settings.time_field) is None:
        return job_class.model_validate_json(json.dumps(payload))
    if field not in kind.job.model_fields:
        raise ConfigError(f"kind {kind.name!r} has no field {field!r}")
    local = time.astimezone(settings.zone)
    try:
        return job_class.model_validate_json(json.dumps(payload | {field: local.isoformat()}))
    except ValidationError as error:
        if not any(item["loc"][:1] == (field,) for item in error.errors()):
            raise
    return job_class.model_validate_json(json.dumps(payload | {field: local.date().isoformat()}))
