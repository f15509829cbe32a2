"""`@scheduled`: a schedule declared beside its job."""

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
class Declared:
    """One declaration, as it was written. It is checked where schedules are read, as those of the file are.

    Attributes:
        module: the one that declares it.
        where: its file and line.
    """

    name: str
    module: str
    where: str
    values: dict[str, Any]


declared: dict[str, Declared] = {}
"""The declarations of this process, by name: one enters when its module is imported."""


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
) -> Callable[[JobType], JobType]:
    """Make jobs of a class at times; the keywords are those of `[schedules.NAME]` in penstock.toml.

        @scheduled(cron="0 3 * * *", timezone="Europe/Berlin")
        class CleanUp(Job, kind="shop.clean_up"):
            days: int = 30

    Dispatchers that import the module fire it. One of the same name in penstock.toml takes its place.

    Arguments:
        name: the kind's name if not given; a class with several schedules needs others.
        payload: the fields; those not given have their defaults.

    Raises:
        KindError: the class has no kind, or another module has declared a schedule of this name. What else is wrong is
            said where schedules are read, so that an import does not fail for it.
    """
    given = {
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
    }
    frame = sys._getframe(1)
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def declare(job: JobType) -> JobType:
        kind = job.kind().name
        own = name or kind
        other = declared.get(own)
        if (
            other is not None
            and other.where != where
            and (other.module, other.values["kind"]) != (job.__module__, kind)
        ):
            raise KindError(f"schedule {own!r} at {where} is declared at {other.where} already; give it another name=")
        values = {key: value for key, value in given.items() if value is not None}
        declared[own] = Declared(own, job.__module__, where, values | {"kind": kind})
        return job

    return declare
