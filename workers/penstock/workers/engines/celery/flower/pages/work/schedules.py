"""`/schedules`: the list; one schedule with its times and runs; pause, resume, run now, backfill, add and remove."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import Field

from penstock.config.errors import ConfigError, ScheduleNotFound
from penstock.config.sections.schedules import WrongSchedule, read_entry
from penstock.ledger.queries.scope import Scope
from penstock.ledger.schedules import commands
from penstock.ledger.schedules.overview import error_of, merge, next_times, status_fields
from penstock.ledger.schedules.previews import around_clock_changes, preview_times
from penstock.ledger.schedules.rules import Schedule, schedule_of_row
from penstock.schemas.schedules.times import Times
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.engines.celery.flower.page import Act, Handler, Page, Parameters

RUNS, TIMES = 50, 10


class Schedules(Page):
    path, name, tab, title = r"/schedules", "schedules", "schedules", "Schedules"
    template = "work/schedules.html"

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        return {"schedules": [_fields(schedule, row) for schedule, row in _visible(self).values()]}


class ScheduleView(Page):
    path, name, tab, title = r"/schedules/([^/]+)", "schedule", "schedules", "Schedule"
    template = "work/schedule.html"

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        schedule, row = _find(self, path_arguments[0])
        runs = commands.runs(self.ledger, schedule.name, RUNS) if row is not None else []
        job = schedule.job
        return {
            "schedule": _fields(schedule, row),
            "payload": None if job is None else job.redacted(),
            "times": next_times(schedule, TIMES),
            "clock_changes": _clock_changes(schedule),
            "runs": [{name: value for name, value in run._asdict().items() if name != "schedule"} for run in runs],
        }


class Preview(Page):
    path, name, tab, title = r"/schedules-preview", "schedule_preview", "schedules", "Preview of a rule"
    template = "work/schedule_preview.html"

    class Query(Parameters):
        cron: str | None = None
        every: str | None = None
        timezone: str = "UTC"
        calendar: str | None = None

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        parameters = {name: value for name, value in query.model_dump().items() if value is not None}
        if not (query.cron or query.every):
            return {"times": [], "error": None}
        entry = read_entry({"kind": "preview", **parameters})
        if isinstance(entry, WrongSchedule):
            return {"times": [], "error": entry.error}
        try:
            times, now = Times(entry), datetime.now(UTC)
        except ConfigError as error:
            return {"times": [], "error": str(error)}
        first = preview_times(times, entry.zone, now, TIMES)
        existing = {time["utc"] for time in first}
        later = [time for time in around_clock_changes(times, entry.zone, now) if time["utc"] not in existing]
        return {"times": first + later, "error": None}


class Pause(Act):
    path = r"/schedules/([^/]+)/pause"

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        name = _named(self, path_arguments[0])
        commands.pause(self.ledger, name, actor=self.person.name)
        return {"message": f"Schedule {name} is paused"}


class Resume(Act):
    path = r"/schedules/([^/]+)/resume"

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        name = _named(self, path_arguments[0])
        next_at = commands.resume(self.ledger, name, actor=self.person.name)
        then = f"; it fires next at {next_at.isoformat()}" if next_at is not None else "; there is no next time"
        return {"message": f"Schedule {name} goes on{then}", "next_at": next_at}


class Run(Act):
    path = r"/schedules/([^/]+)/run"

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        name = _named(self, path_arguments[0])
        job_id = commands.run(self.ledger, name, actor=self.person.name)
        return {"message": f"Schedule {name} made job {job_id}", "job_id": job_id}


class Backfill(Act):
    """A job for each time of a span that has none."""

    path = r"/schedules/([^/]+)/backfill"

    class Body(Parameters):
        begin: datetime
        end: datetime | None = None
        limit: Annotated[int, Field(ge=1, le=commands.MOST_BACKFILLED)] = 1000
        dry_run: bool = False

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        name = _named(self, path_arguments[0])
        settings = schedule_of_row(commands.find(self.ledger, name)).settings
        zone = settings.zone if settings is not None else ZoneInfo("UTC")
        begin, end = _in_zone(body.begin, zone), None if body.end is None else _in_zone(body.end, zone)
        times = commands.backfill(
            self.ledger, name, begin, end, actor=self.person.name, limit=body.limit, dry_run=body.dry_run
        )
        result = [time for time in times if time.skipped is None]
        word = "would make" if body.dry_run else "made"
        return {
            "message": f"Schedule {name} {word} {len(result):,} jobs for {len(times):,} times",
            "times": [{"at": time.time, "job_id": time.job_id, "skipped": time.skipped} for time in times],
        }


class Add(Act):
    """A schedule that is made at run time; permanent ones belong in penstock.toml."""

    path = r"/schedules/([^/]+)/add"

    class Body(Parameters):
        kind: str
        cron: str | None = None
        every: str | None = None
        at: str | None = None
        timezone: str = "UTC"
        calendar: str | None = None
        payload: dict[str, Any] | None = None
        overlap: str | None = None
        misfire: str | None = None
        jitter: str | None = None

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        [name] = path_arguments
        values = {key: value for key, value in body.model_dump().items() if value is not None}
        if not self.person.scope.includes(body.kind, None if self.person.scope.queues is None else "", None):
            raise ScheduleNotFound(f"{body.kind} is not among your kinds")
        schedule = commands.add(self.ledger, name, values, actor=self.person.name)
        return {"message": f"Schedule {name} is made", "next": next_times(schedule, 1)}


class Remove(Act):
    path = r"/schedules/([^/]+)/remove"

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        name = _named(self, path_arguments[0])
        commands.remove(self.ledger, name, actor=self.person.name)
        return {"message": f"Schedule {name} is removed; its jobs stay"}


def _visible(handler: Handler) -> dict[str, tuple[Schedule, Any]]:
    settings = handler.services.settings
    merged = merge(read_schedules(settings), commands.recorded_schedules(handler.ledger))
    scope = handler.person.scope
    return {name: pair for name, pair in merged.items() if _is_within(pair[0], scope)}


def _is_within(schedule: Schedule, scope: Scope) -> bool:
    """Schedules belong to all tenants. One whose rule cannot be read is seen by those who see everything."""
    if not scope.is_bounded:
        return True
    if schedule.settings is None or scope.tenants is not None:
        return False
    job = schedule.job
    queue = None if job is None else job.kind().queue
    return scope.includes(schedule.settings.kind, queue, None)


def _find(handler: Handler, name: str) -> tuple[Schedule, Any]:
    schedules = _visible(handler)
    if name not in schedules:
        raise ScheduleNotFound(f"no schedule is named {name}")
    return schedules[name]


def _named(handler: Handler, name: str) -> str:
    """The name of a schedule that this person may see. Raises ScheduleNotFound."""
    return _find(handler, name)[0].name


def _fields(schedule: Schedule, row: Any) -> dict[str, Any]:
    settings = schedule.settings
    return {
        "name": schedule.name,
        "kind": settings.kind if settings else None,
        "when": settings.when if settings else None,
        "timezone": settings.timezone if settings else None,
        "overlap": settings.overlap if settings else None,
        "misfire": settings.misfire if settings else None,
        **status_fields(schedule, row, error_of(schedule, row)),
    }


def _clock_changes(schedule: Schedule) -> list[dict[str, Any]]:
    if schedule.times is None or schedule.settings is None:
        return []
    return around_clock_changes(schedule.times, schedule.settings.zone, datetime.now(UTC))


def _in_zone(time: datetime, zone: ZoneInfo) -> datetime:
    """A time without an offset is one of the schedule's zone."""
    return (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)


HANDLERS = (Schedules, ScheduleView, Preview, Pause, Resume, Run, Backfill, Add, Remove)
