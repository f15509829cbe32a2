"""`penstock schedules`."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from penstock.workers.cli.opened import open_ledger, open_settings
from penstock.workers.cli.options import AsJson, Imports
from penstock.workers.cli.output import print_rows
from penstock.workers.discovery import discover

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_schedules(imports: Imports = None, as_json: AsJson = False) -> None:
    """List the schedules of penstock.toml, and what the ledger says of their last firing."""
    from penstock.config.errors import LedgerUnavailable
    from penstock.workers.dispatcher.cron import next_time
    from penstock.workers.dispatcher.rules import read_schedules
    from penstock.workers.dispatcher.schedules import recorded

    discover(imports or ())
    settings, now = open_settings(), datetime.now(UTC)
    try:
        with open_ledger(settings) as database:
            known = recorded(database)
    except LedgerUnavailable as error:
        typer.echo(f"penstock: {error}; last firings are not known", err=True)
        known = {}
    rows: list[dict[str, Any]] = []
    for rule in read_schedules(settings):
        row, one = known.get(rule.name), rule.settings
        next_at = None if rule.error else (row and row.next_at) or next_time(one.cron, one.timezone, now)
        rows.append(
            {
                "name": rule.name,
                **one.model_dump(include={"kind", "cron", "timezone", "overlap", "misfire"}),
                "next_at": next_at,
                "last_at": row.last_at if row else None,
                "last_job_id": row.last_job_id if row else None,
                "error": rule.error,
            }
        )
    columns = ("name", "kind", "cron", "timezone", "next_at", "last_at", "last_job_id", "error")
    print_rows(rows, columns, as_json=as_json, empty="no schedules; see [schedules.NAME] in penstock.toml")


@app.command("next")
def next_times(
    name: Annotated[str | None, typer.Argument(help="One schedule; all of them if not given.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="How many times.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print the next firing times, in each schedule's time zone."""
    from penstock.config.errors import ConfigError
    from penstock.workers.dispatcher.cron import fire_times

    schedules = open_settings().schedules
    if name is not None and name not in schedules:
        raise ConfigError(f"no schedule {name!r} in penstock.toml; there are: {', '.join(sorted(schedules)) or 'none'}")
    rows = [
        {"schedule": one, "at": time.astimezone(ZoneInfo(schedules[one].timezone)).isoformat(), "utc": time}
        for one in ([name] if name else sorted(schedules))
        for time in islice(fire_times(schedules[one].cron, schedules[one].timezone, datetime.now(UTC)), count)
    ]
    empty = "no firing times" if schedules else "no schedules; see [schedules.NAME] in penstock.toml"
    print_rows(rows, ("schedule", "at", "utc"), as_json=as_json, empty=empty)
