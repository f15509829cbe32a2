"""`penstock schedules`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, Imports, Limit
from penstock.workers.cli.common.output import print_fields, print_json, print_rows
from penstock.workers.cli.common.session import for_each, open_ledger, open_settings
from penstock.workers.cli.schedules.options import (
    Anchor,
    At,
    Calendar,
    CatchUp,
    Closed,
    Count,
    Cron,
    Every,
    Jitter,
    Misfire,
    Overlap,
    Payload,
    TimeField,
    Zone,
    at_clock,
    given,
)
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.schedules.rules import Schedule
    from penstock.ledger.sql.database import Database

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME")]
Names = Annotated[list[str], typer.Argument(metavar="NAME…")]
_EMPTY = "no schedules; see [schedules.NAME] in penstock.toml, and: penstock schedules add --help"


@app.command("list")
def list_schedules(imports: Imports = None, as_json: AsJson = False) -> None:
    """List the schedules: those the ledger has, and those of penstock.toml that no dispatcher has read yet."""
    discover(imports or ())
    rows = [_fields(schedule, row) for schedule, row in _known(open_settings()).values()]
    columns = ("name", "kind", "when", "timezone", "state", "next_at", "last_at", "error")
    print_rows(rows, columns, as_json=as_json, empty=_EMPTY)


@app.command()
def show(
    name: Name,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="How many of its last runs.")] = 10,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Show one schedule, its next times and its last runs with their jobs."""
    from penstock.ledger.schedules.commands import runs

    discover(imports or ())
    settings = open_settings()
    schedule, row = _one(settings, name)
    with open_ledger(settings) as database:
        found = [one._asdict() for one in runs(database, name, limit)] if row is not None else []
    for one in found:
        del one["schedule"]
    fields = _fields(schedule, row) | _rest(schedule)
    times = _next_times(schedule, 5)
    if as_json:
        print_json(fields | {"next": times, "runs": found})
        return
    print_fields(fields)
    typer.echo()
    print_rows(times, ("at", "clock"), as_json=False, empty="no time to come")
    columns = ("fire_at", "cause", "skipped", "job_id", "state", "started_at", "finished_at")
    print_rows(found, columns, as_json=False, empty="no runs yet")


@app.command("next")
def next_times(
    name: Annotated[str | None, typer.Argument(help="One schedule; all of them if not given.")] = None,
    count: Count = 10,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Print the next times, in each schedule's time zone, with what the clock does there."""
    discover(imports or ())
    settings = open_settings()
    chosen = [_one(settings, name)] if name is not None else list(_known(settings).values())
    rows = [{"schedule": schedule.name, **one} for schedule, _ in chosen for one in _next_times(schedule, count)]
    print_rows(rows, ("schedule", "at", "utc", "clock"), as_json=as_json, empty="no firing times" if chosen else _EMPTY)


@app.command()
def preview(
    cron: Annotated[str | None, typer.Argument(metavar="[RULE]", help='Such as "0 9 * * mon-fri" or @daily.')] = None,
    timezone: Zone = "UTC",
    every: Every = None,
    anchor: Anchor = None,
    calendar: Calendar = None,
    closed: Closed = None,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="DATE|TIME", help="From when on; now if not given.")
    ] = None,
    count: Count = 10,
    as_json: AsJson = False,
) -> None:
    """Print when a rule would fire: the next times, and those around the next two changes of the clock."""
    from penstock.ledger.schedules.previews import around_clock_changes, preview_times
    from penstock.schemas.schedules.times import Times

    settings = _preview_settings(
        given(cron=cron, timezone=timezone, every=every, anchor=anchor, calendar=calendar, closed=closed)
    )
    after, times = at_clock(begin, settings.zone) or datetime.now(UTC), Times(settings)
    first = preview_times(times, settings.zone, after, count)
    rows = first + [
        one
        for one in around_clock_changes(times, settings.zone, after)
        if one["utc"] not in {row["utc"] for row in first}
    ]
    print_rows(rows, ("at", "utc", "clock"), as_json=as_json, empty="it never fires")


@app.command()
def add(
    name: Name,
    kind: Annotated[str, typer.Option(help="The kind of the jobs it makes.")],
    cron: Cron = None,
    every: Every = None,
    anchor: Anchor = None,
    at: At = None,
    timezone: Zone = "UTC",
    calendar: Calendar = None,
    closed: Closed = None,
    payload: Payload = None,
    time_field: TimeField = None,
    overlap: Overlap = "skip",
    misfire: Misfire = "once",
    catch_up: CatchUp = None,
    jitter: Jitter = None,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
    as_json: AsJson = False,
) -> None:
    """Make a schedule in the ledger; it fires from now on. One of penstock.toml is better kept there."""
    from penstock.ledger.schedules.commands import add as add_schedule

    discover(imports or ())
    values = given(
        kind=kind,
        cron=cron,
        every=every,
        anchor=anchor,
        at=at,
        timezone=timezone,
        calendar=calendar,
        closed=closed,
        payload=payload,
        time_field=time_field,
        overlap=overlap,
        misfire=misfire,
        catch_up=catch_up,
        jitter=jitter,
    )
    with open_ledger() as database:
        schedule = add_schedule(database, name, values, actor=actor)
    times = _next_times(schedule, 1)
    if as_json:
        print_json({"name": name, "next": times})
    else:
        typer.echo(f"{name} added; next at {times[0]['at']}")


@app.command()
def remove(names: Names, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Remove schedules that were made with add. Their jobs stay."""
    from penstock.ledger.schedules.commands import remove as remove_schedule

    def act(database: Database, name: str) -> str:
        remove_schedule(database, name, actor=actor)
        return "removed"

    for_each(names, act)


@app.command()
def pause(names: Names, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Let schedules make no jobs until they are resumed."""
    from penstock.ledger.schedules.commands import pause as pause_schedule

    def act(database: Database, name: str) -> str:
        pause_schedule(database, name, actor=actor)
        return "paused"

    for_each(names, act)


@app.command()
def resume(names: Names, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Let paused schedules go on from now. What they would have done meanwhile is not made up for; see backfill."""
    from penstock.ledger.schedules.commands import resume as resume_schedule

    def act(database: Database, name: str) -> str:
        next_at = resume_schedule(database, name, actor=actor)
        return f"resumed; next at {next_at.isoformat()}" if next_at is not None else "resumed; it has no next time"

    for_each(names, act)


@app.command()
def run(
    name: Name,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Make a job of a schedule now, paused or not, whatever its last one does. Prints the job's id."""
    from penstock.ledger.schedules.commands import run as run_schedule

    discover(imports or ())
    with open_ledger() as database:
        job_id = run_schedule(database, name, actor=actor)
    if as_json:
        print_json({"name": name, "job_id": job_id})
    else:
        typer.echo(job_id)


@app.command()
def backfill(
    name: Name,
    begin: Annotated[str, typer.Option("--from", metavar="DATE|TIME", help="In the schedule's zone, if not said.")],
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE|TIME", help="Which is not taken itself; now if not given.")
    ] = None,
    limit: Limit = 10_000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which times would make a job, and make none.")
    ] = False,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Make a job for each time between two dates that has none. They may run beside each other."""
    from penstock.ledger.schedules.commands import backfill as backfill_schedule
    from penstock.ledger.schedules.commands import find
    from penstock.ledger.schedules.rules import schedule_of_row

    discover(imports or ())
    with open_ledger() as database:
        settings = schedule_of_row(find(database, name)).settings
        zone = settings.zone if settings is not None else ZoneInfo("UTC")
        first, end = at_clock(begin, zone), at_clock(until, zone)
        assert first is not None
        made = backfill_schedule(database, name, first, end, actor=actor, limit=limit, dry_run=dry_run)
    rows = [{"at": one.time, "job_id": one.job_id, "skipped": one.skipped} for one in made]
    print_rows(rows, ("at", "job_id", "skipped"), as_json=as_json, empty="no times in that span")


def _known(settings: Settings) -> dict[str, tuple[Schedule, Any]]:
    """Every schedule by name, with its row in the ledger: what fires. Those that no dispatcher has read have none."""
    from penstock.config.errors import LedgerUnavailable
    from penstock.ledger.schedules.commands import recorded_schedules
    from penstock.ledger.schedules.rules import schedule_of_row
    from penstock.workers.dispatcher.schedules.declarations import read_schedules

    try:
        with open_ledger(settings) as database:
            rows = recorded_schedules(database)
    except LedgerUnavailable as error:
        typer.echo(f"penstock: {error}; what runs is not known", err=True)
        rows = {}
    known: dict[str, tuple[Schedule, Any]] = {rule.name: (rule, None) for rule in read_schedules(settings)}
    for name, row in rows.items():
        # The one that was read has file and line for what is wrong, if it is the same.
        same = known[name][0] if name in known and known[name][0].rule == row.rule else schedule_of_row(row)
        known[name] = (same, row)
    return dict(sorted(known.items()))


def _one(settings: Settings, name: str) -> tuple[Schedule, Any]:
    from penstock.config.errors import ConfigError

    known = _known(settings)
    if name not in known:
        raise ConfigError(f"no schedule {name!r}; there are: {', '.join(known) or 'none'}")
    return known[name]


def _fields(schedule: Schedule, row: Any) -> dict[str, Any]:
    settings = schedule.settings
    # A dispatcher has read it, which may have imported what this process lacks.
    fires = row is not None and row.rule == schedule.rule and row.error is None
    error = None if fires else schedule.error or (row.error if row is not None else None)
    next_at = row.next_at if row is not None else None
    if row is None and schedule.times is not None:
        next_at = schedule.times.next(datetime.now(UTC))
    paused = row is not None and row.paused_at is not None
    state = "wrong" if error else "unread" if row is None else "paused" if paused else "active" if next_at else "over"
    return {
        "name": schedule.name,
        "kind": settings.kind if settings else None,
        "when": settings.when if settings else None,
        "timezone": settings.timezone if settings else None,
        "source": row.source if row is not None else schedule.source,
        "state": state,
        "next_at": None if paused else next_at,
        "last_at": row.last_at if row is not None else None,
        "last_job_id": row.last_job_id if row is not None else None,
        "waiting_at": row.waiting_at if row is not None else None,
        "paused_at": row.paused_at if row is not None else None,
        "error": error,
    }


def _rest(schedule: Schedule) -> dict[str, Any]:
    if schedule.settings is None:
        return {}
    names = ("overlap", "misfire", "catch_up", "jitter", "time_field")
    job = schedule.job
    return {
        **{name: getattr(schedule.settings, name) or None for name in names},
        # Only of a kind that is known here is it known what is sensitive.
        "payload": None if job is None else job.redacted(),
    }


def _next_times(schedule: Schedule, count: int) -> list[dict[str, Any]]:
    from penstock.ledger.schedules.previews import preview_times

    if schedule.times is None or schedule.settings is None:
        return []
    return preview_times(schedule.times, schedule.settings.zone, datetime.now(UTC), count)


def _preview_settings(values: dict[str, Any]) -> Any:
    from penstock.config.errors import ConfigError
    from penstock.config.sections.schedules import WrongSchedule, read_entry

    entry = read_entry({"kind": "preview", **values})
    if isinstance(entry, WrongSchedule):
        raise ConfigError(entry.error)
    return entry
