"""`penstock schedules list`, `show`, `next` and `preview`: the commands that only read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import echo, print_fields, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.cli.schedules.options import (
    Anchor,
    Calendar,
    Closed,
    Count,
    Every,
    Name,
    Start,
    Until,
    Zone,
    parse_local_time,
    present,
)
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.schedules.rules import Schedule

_EMPTY = "no schedules; see [schedules.NAME] in penstock.toml, and: penstock schedules add --help"


def add_to(app: typer.Typer) -> None:
    app.command("list")(list_schedules)
    app.command()(show)
    app.command("next")(list_next_times)
    app.command()(preview)


def list_schedules(imports: Imports = None, as_json: AsJson = False) -> None:
    """List the schedules of the ledger, and those of penstock.toml and the code that no dispatcher has read yet."""
    discover(imports or ())
    rows = [_fields(schedule, row) for schedule, row in _all_schedules(open_settings()).values()]
    columns = ("name", "kind", "when", "timezone", "state", "next_at", "last_at", "error")
    print_rows(rows, columns, as_json=as_json, empty=_EMPTY)


def show(
    name: Name,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="How many of its last runs to show.")] = 10,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Show one schedule, its next times and its last runs with their jobs."""
    from penstock.ledger.schedules.commands import runs
    from penstock.ledger.schedules.overview import next_times

    discover(imports or ())
    settings = open_settings()
    schedule, row = _find(settings, name)
    with open_ledger(settings) as database:
        last_runs = [run._asdict() for run in runs(database, name, limit)] if row is not None else []
    for run in last_runs:
        del run["schedule"]
    fields = _fields(schedule, row) | _rest(schedule)
    times = next_times(schedule, 5)
    if as_json:
        print_json(fields | {"next": times, "runs": last_runs})
        return
    print_fields(fields)
    echo()
    print_rows(times, ("at", "clock"), as_json=False, empty="no next times")
    columns = ("fire_at", "cause", "skipped", "job_id", "state", "started_at", "finished_at")
    print_rows(last_runs, columns, as_json=False, empty="no runs yet")


def list_next_times(
    name: Annotated[str | None, typer.Argument(help="One schedule; all of them if not given.")] = None,
    count: Count = 10,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Print the next times in each schedule's time zone, with the changes of the clock."""
    from penstock.ledger.schedules.overview import next_times

    discover(imports or ())
    settings = open_settings()
    chosen = [_find(settings, name)] if name is not None else list(_all_schedules(settings).values())
    rows = [{"schedule": schedule.name, **time} for schedule, _ in chosen for time in next_times(schedule, count)]
    print_rows(rows, ("schedule", "at", "utc", "clock"), as_json=as_json, empty="no firing times" if chosen else _EMPTY)


def preview(
    cron: Annotated[str | None, typer.Argument(metavar="[RULE]", help='Such as "0 9 * * mon-fri" or @daily.')] = None,
    timezone: Zone = "UTC",
    every: Every = None,
    anchor: Anchor = None,
    start: Start = None,
    until: Until = None,
    calendar: Calendar = None,
    closed: Closed = None,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="DATE|TIME", help="The time to start from; now if not given.")
    ] = None,
    count: Count = 10,
    as_json: AsJson = False,
) -> None:
    """Print when a rule would fire: the next times, and those around the next two changes of the clock."""
    from penstock.ledger.schedules.previews import around_clock_changes, preview_times
    from penstock.schemas.schedules.times import Times

    settings = _preview_settings(
        present(
            cron=cron,
            timezone=timezone,
            every=every,
            anchor=anchor,
            start=start,
            until=until,
            calendar=calendar,
            closed=closed,
        )
    )
    after, times = parse_local_time(begin, settings.zone) or datetime.now(UTC), Times(settings)
    first = preview_times(times, settings.zone, after, count)
    rows = first + [
        time
        for time in around_clock_changes(times, settings.zone, after)
        if time["utc"] not in {row["utc"] for row in first}
    ]
    print_rows(rows, ("at", "utc", "clock"), as_json=as_json, empty="it never fires")


def _all_schedules(settings: Settings) -> dict[str, tuple[Schedule, Any]]:
    """Name → schedule of the file, the code or the ledger, with its row in the ledger if there is one."""
    from penstock.config.errors import LedgerUnavailable
    from penstock.ledger.schedules.commands import recorded_schedules
    from penstock.ledger.schedules.overview import merge
    from penstock.workers.dispatcher.schedules.declarations import read_schedules

    try:
        with open_ledger(settings) as database:
            rows = recorded_schedules(database)
    except LedgerUnavailable as error:
        echo(f"penstock: {error}; only the schedules of penstock.toml and the code are shown", err=True)
        rows = {}
    return merge(read_schedules(settings), rows)


def _find(settings: Settings, name: str) -> tuple[Schedule, Any]:
    from penstock.config.errors import ConfigError

    schedules = _all_schedules(settings)
    if name not in schedules:
        raise ConfigError(f"no schedule {name!r}; there are: {', '.join(schedules) or 'none'}")
    return schedules[name]


def _fields(schedule: Schedule, row: Any) -> dict[str, Any]:
    from penstock.ledger.schedules.overview import error_of, status_fields

    settings = schedule.settings
    return {
        "name": schedule.name,
        "kind": settings.kind if settings else None,
        "when": settings.when if settings else None,
        "timezone": settings.timezone if settings else None,
        **status_fields(schedule, row, error_of(schedule, row)),
    }


def _rest(schedule: Schedule) -> dict[str, Any]:
    if schedule.settings is None:
        return {}
    names = (
        "overlap",
        "misfire",
        "catch_up",
        "jitter",
        "time_field",
        "start",
        "until",
        "queue",
        "priority",
        "expires_in",
    )
    job = schedule.job
    return {
        **{name: getattr(schedule.settings, name) or None for name in names},
        # The sensitive fields of a kind that is not registered here are not known.
        "payload": None if job is None else job.redacted(),
    }


def _preview_settings(values: dict[str, Any]) -> Any:
    from penstock.config.errors import ConfigError
    from penstock.config.sections.schedules import WrongSchedule, read_entry

    entry = read_entry({"kind": "preview", **values})
    if isinstance(entry, WrongSchedule):
        raise ConfigError(entry.error)
    return entry
