"""`[schedules.NAME]`: jobs that are made at certain times."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from penstock.config.sections.values import TimeZone

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")

_LONGEST = timedelta(days=36_525)
_SHORTEST = timedelta(milliseconds=100)
"""About how often a dispatcher looks."""

TOLERANCE = timedelta(minutes=1)
"""A time that has not fired for longer than this counts as missed."""


def read_duration(value: object) -> object:
    """Text → duration; numbers (seconds) and ISO 8601 are left to pydantic."""
    if isinstance(value, str) and value.strip() == "0":
        return timedelta()
    match = _DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is not None:
        try:
            return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
        except OverflowError:
            raise ValueError(f"{value!r} is too long") from None
    if isinstance(value, str) and not value.startswith("P"):
        raise ValueError(f'{value!r} is not a duration; write "30s", "15m", "2h", "1d" or "1w"')
    return value


Duration = Annotated[timedelta, BeforeValidator(read_duration)]


def duration_text(duration: timedelta) -> str:
    """Duration → text as in the file, such as `15m`."""
    seconds = duration.total_seconds()
    for unit, size in sorted(_UNITS.items(), key=lambda item: -item[1]):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


class ScheduleSettings(BaseModel):
    """A schedule: a job and its times, given by `cron`, `every` or `at`, or computed by code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    cron: str | None = None
    """Five fields (minute hour day month weekday), six with seconds first, or `@daily` and the like."""
    every: Duration | None = None
    """Elapsed time between two firings, from 0.1 s up, counted from `anchor`."""
    anchor: datetime | None = None
    """A time from which `every` counts; without an offset in `timezone`. 1970-01-01T00:00Z if not given."""
    at: datetime | None = None
    """The only time; without an offset in `timezone`."""
    times: str | None = None
    """Name of times that code computes: see `penstock.schemas.schedules.computed`. Not for people to write."""
    start: datetime | None = None
    """No time before it; without an offset in `timezone`."""
    until: datetime | None = None
    """No time from it on, and jobs that have not started by then expire; without an offset in `timezone`."""
    timezone: TimeZone = "UTC"
    calendar: str | None = None
    """Holidays: of a country (`DE`), a part of it (`DE-BY`), or a market (`NYSE`, `ECB`)."""
    closed: Literal["skip", "before", "after"] | None = None
    """A time on a weekend or holiday of `calendar` is skipped, or moves to the business day before or after."""
    payload: dict[str, Any] = Field(default_factory=dict)
    time_field: str | None = None
    """The payload's field that gets the time of the firing: a date or a datetime, as the field is declared."""
    overlap: Literal["skip", "allow", "queue", "replace"] = "skip"
    """Action when the last firing's job has not ended."""
    misfire: Literal["skip", "once", "all"] = "once"
    """Action for times missed while no dispatcher ran."""
    catch_up: Duration | None = None
    """Maximum age of a missed time that still fires, from a minute up; None: no limit. An `at` that has passed before
    the schedule is there fires within that age, too; None: it does not."""
    jitter: Duration = timedelta()
    """Fire later by up to this. The delay is the same each time: it is derived from the schedule's name."""
    queue: str | None = None
    """Where its jobs go; None: where their kind says."""
    priority: Literal["high", "normal", "low"] | None = None
    """Of its jobs; None: as their kind says."""
    expires_in: Duration | None = None
    """Its jobs expire when they have not started for so long; None: as their kind says."""

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def when(self) -> str:
        """Its rule, in a few words."""
        if self.every is not None:
            return f"every {duration_text(self.every)}"
        rule = self.cron or self.times or f"at {self.at}"
        return rule if self.closed is None else f"{rule}, closed days of {self.calendar}: {self.closed}"

    @field_validator("every")
    @classmethod
    def _not_too_often(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and (value < _SHORTEST or value % timedelta(milliseconds=1)):
            raise ValueError("must be 0.1s or more, in whole milliseconds")
        return value

    @field_validator("catch_up")
    @classmethod
    def _not_too_short(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value < TOLERANCE:
            raise ValueError("the minimum is 1m: a time counts as missed only when it is that late")
        if value is not None and value > _LONGEST:
            raise ValueError("the maximum is 100 years; leave it out for no limit")
        return value

    @field_validator("expires_in")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not timedelta() < value <= _LONGEST:
            raise ValueError("must be more than 0s, and 100 years at most")
        return value

    @field_validator("jitter")
    @classmethod
    def _not_negative(cls, value: timedelta) -> timedelta:
        if not timedelta() <= value <= timedelta(days=1):
            raise ValueError("must be between 0s and 1d")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        rules = [name for name in ("cron", "every", "at", "times") if getattr(self, name) is not None]
        if len(rules) != 1:
            raise ValueError(f"give one of cron, every and at, not {' and '.join(rules) or 'none'}")
        if self.anchor is not None and self.every is None:
            raise ValueError("anchor goes with every only")
        if (self.calendar is None) != (self.closed is None):
            raise ValueError("calendar and closed go together: closed says how a time on a closed day moves")
        if self.calendar is not None and self.cron is None:
            raise ValueError("calendar goes with cron only")
        return self


class WrongSchedule(BaseModel):
    """A schedule that is refused. The settings can still be read, and other schedules fire.

    Attributes:
        key: the first wrong key of its table; empty if the table itself is wrong.
        error: all that is wrong.
    """

    model_config = ConfigDict(frozen=True)

    values: dict[str, Any]
    key: str
    error: str


def read_entry(value: object) -> ScheduleSettings | WrongSchedule:
    """Table of the file → checked settings, or the error."""
    if isinstance(value, ScheduleSettings | WrongSchedule):
        return value
    if not isinstance(value, dict):
        return WrongSchedule(values={}, key="", error="it must be a table, such as [schedules.nightly]")
    try:
        return ScheduleSettings.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
    keys = [str(item["loc"][0]) if item["loc"] else "" for item in problems]
    return WrongSchedule(values=value, key=keys[0], error="; ".join(map(_text, problems)))


def _text(item: Any) -> str:
    path = ".".join(map(str, item["loc"]))
    why = "unknown setting" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
    return f"{path}: {why}" if path else str(why)


ScheduleEntry = Annotated[ScheduleSettings | WrongSchedule, BeforeValidator(read_entry)]
