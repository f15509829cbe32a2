"""`penstock schedules`: the commands that change schedules, and those of `views`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, Imports, Limit
from penstock.workers.cli.common.output import echo, print_json, print_rows
from penstock.workers.cli.common.session import for_each, open_ledger
from penstock.workers.cli.schedules import views
from penstock.workers.cli.schedules.options import (
    Anchor,
    At,
    Calendar,
    CatchUp,
    Closed,
    Cron,
    Every,
    ExpiresIn,
    Jitter,
    Misfire,
    Name,
    Names,
    Overlap,
    Payload,
    Priority,
    Queue,
    Start,
    TimeField,
    Until,
    Zone,
    parse_local_time,
    present,
)
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database

app = typer.Typer(no_args_is_help=True, help="See, preview, make, pause, run and backfill schedules.")
views.add_to(app)


@app.command()
def add(
    name: Name,
    kind: Annotated[str, typer.Option(help="The kind of the jobs it makes.")],
    cron: Cron = None,
    every: Every = None,
    anchor: Anchor = None,
    at: At = None,
    start: Start = None,
    until: Until = None,
    timezone: Zone = "UTC",
    calendar: Calendar = None,
    closed: Closed = None,
    payload: Payload = None,
    time_field: TimeField = None,
    overlap: Overlap = "skip",
    misfire: Misfire = "once",
    catch_up: CatchUp = None,
    jitter: Jitter = None,
    queue: Queue = None,
    priority: Priority = None,
    expires_in: ExpiresIn = None,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
    as_json: AsJson = False,
) -> None:
    """Make a schedule in the ledger; it fires from now on. Permanent schedules belong in penstock.toml."""
    from penstock.ledger.schedules.commands import add as add_schedule
    from penstock.ledger.schedules.overview import next_times

    discover(imports or ())
    values = present(
        kind=kind,
        cron=cron,
        every=every,
        anchor=anchor,
        at=at,
        start=start,
        until=until,
        timezone=timezone,
        calendar=calendar,
        closed=closed,
        payload=payload,
        time_field=time_field,
        overlap=overlap,
        misfire=misfire,
        catch_up=catch_up,
        jitter=jitter,
        queue=queue,
        priority=priority,
        expires_in=expires_in,
    )
    with open_ledger() as database:
        schedule = add_schedule(database, name, values, actor=actor)
    times = next_times(schedule, 1)
    if as_json:
        print_json({"name": name, "next": times})
    else:
        echo(f"{name} added; next at {times[0]['at']}")


@app.command()
def remove(names: Names, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Remove schedules that were made with add. Their jobs stay."""
    from penstock.ledger.schedules.commands import remove as remove_schedule

    for_each(names, partial(remove_schedule, actor=actor), "removed")


@app.command()
def pause(names: Names, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Pause schedules: they make no jobs until they are resumed."""
    from penstock.ledger.schedules.commands import pause as pause_schedule

    for_each(names, partial(pause_schedule, actor=actor), "paused")


@app.command()
def resume(names: Names, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Resume paused schedules from now on. The times missed meanwhile make no jobs; see backfill."""
    from penstock.ledger.schedules.commands import resume as resume_schedule

    def resume_one(database: Database, name: str) -> str:
        next_at = resume_schedule(database, name, actor=actor)
        return f"resumed; next at {next_at.isoformat()}" if next_at is not None else "resumed; there is no next time"

    for_each(names, resume_one)


@app.command()
def run(
    name: Name,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Make a job of a schedule now, even if it is paused or its last job has not ended. Prints the job's id."""
    from penstock.ledger.schedules.commands import run as run_schedule

    discover(imports or ())
    with open_ledger() as database:
        job_id = run_schedule(database, name, actor=actor)
    if as_json:
        print_json({"name": name, "job_id": job_id})
    else:
        echo(job_id)


@app.command()
def backfill(
    name: Name,
    begin: Annotated[
        str, typer.Option("--from", metavar="DATE|TIME", help="In the schedule's zone, unless it has an offset.")
    ],
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE|TIME", help="The end, itself excluded; now if not given.")
    ] = None,
    limit: Limit = 10_000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the times that would make a job, and make none.")
    ] = False,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Make a job for each time between two dates that has none. These jobs may run at the same time."""
    from penstock.ledger.schedules.commands import backfill as backfill_schedule
    from penstock.ledger.schedules.commands import find
    from penstock.ledger.schedules.rules import schedule_of_row

    discover(imports or ())
    with open_ledger() as database:
        settings = schedule_of_row(find(database, name)).settings
        zone = settings.zone if settings is not None else ZoneInfo("UTC")
        first, end = parse_local_time(begin, zone), parse_local_time(until, zone)
        assert first is not None
        times = backfill_schedule(database, name, first, end, actor=actor, limit=limit, dry_run=dry_run)
    rows = [{"at": time.time, "job_id": time.job_id, "skipped": time.skipped} for time in times]
    print_rows(rows, ("at", "job_id", "skipped"), as_json=as_json, empty="no times in that span")
