"""`@scheduled`: a schedule declared next to its job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from penstock.config.errors import KindError
from penstock.schemas.jobs.job import Job

JobType = TypeVar("JobType", bound=type[Job])


@dataclass(frozen=True, slots=True)
class ScheduleDeclaration:
    """A declaration as it was written. It is checked where schedules are read, like the schedules of the file.

    Attributes:
        module: the one that declares it, or a name in `sources`.
        where: its file and line.
    """

    name: str
    module: str
    where: str
    values: dict[str, Any]


declarations: dict[str, ScheduleDeclaration] = {}
"""Name → declaration, of the modules that this process has imported. A dispatcher follows changes."""
sources: set[str] = set()
"""Values of `module` that are no modules, of declarations that were all read: those that are gone were removed."""


def scheduled(
    *,
    cron: str | None = None,
    every: str | float | timedelta | None = None,
    at: str | datetime | None = None,
    name: str | None = None,
    timezone: str = "UTC",
    anchor: str | datetime | None = None,
    calendar: str | None = None,
    closed: Literal["skip", "before", "after"] | None = None,
    payload: Mapping[str, Any] | None = None,
    time_field: str | None = None,
    overlap: Literal["skip", "allow", "queue", "replace"] = "skip",
    misfire: Literal["skip", "once", "all"] = "once",
    catch_up: str | float | timedelta | None = None,
    jitter: str | float | timedelta = 0,
    start: str | datetime | None = None,
    until: str | datetime | None = None,
    queue: str | None = None,
    priority: Literal["high", "normal", "low"] | None = None,
    expires_in: str | float | timedelta | None = None,
) -> Callable[[JobType], JobType]:
    """Make jobs of a class at times. The keywords are those of `[schedules.NAME]` in penstock.toml.

        @scheduled(cron="0 3 * * *", timezone="Europe/Berlin")
        class CleanUp(Job, kind="shop.clean_up"):
            days: int = 30

    Dispatchers that import the module fire it. A schedule of the same name in penstock.toml takes its place.

    Arguments:
        name: default: the kind's name; a class with several schedules needs more names.
        payload: the fields; the others have their defaults.

    Raises:
        KindError: the class has no kind, or another module has declared a schedule of this name. Other faults are
            reported where schedules are read, so that no import fails because of them.
    """
    options = {
        "cron": cron,
        "every": every,
        "at": at,
        "timezone": timezone,
        "anchor": anchor,
        "calendar": calendar,
        "closed": closed,
        "payload": dict(payload or {}),
        "time_field": time_field,
        "overlap": overlap,
        "misfire": misfire,
        "catch_up": catch_up,
        "jitter": jitter,
        "start": start,
        "until": until,
        "queue": queue,
        "priority": priority,
        "expires_in": expires_in,
    }
    frame = sys._getframe(1)
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def declare(job: JobType) -> JobType:
        kind = job.kind().name
        own = name or kind
        other = declarations.get(own)
        if (
            other is not None
            and other.where != where
            and (other.module, other.values["kind"]) != (job.__module__, kind)
        ):
            raise KindError(f"schedule {own!r} at {where} is declared at {other.where} already; give it another name=")
        values = {key: value for key, value in options.items() if value is not None}
        declarations[own] = ScheduleDeclaration(own, job.__module__, where, values | {"kind": kind})
        return job

    return declare
