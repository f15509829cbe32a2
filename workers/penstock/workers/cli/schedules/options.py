"""Options of schedules: each is a key of `[schedules.NAME]`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from penstock.workers.cli.common.options import parse_json


def _object(text: str) -> dict[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise typer.BadParameter('write the fields as {"field": value}')
    return value


def present(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def parse_local_time(text: str | None, zone: ZoneInfo) -> datetime | None:
    """Parse a date or time; one without an offset is local to the zone."""
    from penstock.schemas.schedules.cron import localized

    try:
        return None if text is None else localized(datetime.fromisoformat(text), zone)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time; write 2026-03-01, 2026-03-01T09:00 or with +01:00") from None


_CRON = 'minute hour day month weekday, such as "0 9 * * mon-fri"; six fields begin with seconds; or @daily.'
Cron = Annotated[str | None, typer.Option(metavar="RULE", help=_CRON)]
Every = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Elapsed time between two firings: 30s, 15m, 2h, 1d.")
]
Anchor = Annotated[
    str | None, typer.Option(metavar="TIME", help="A time from which --every counts; 1970-01-01T00:00Z if not given.")
]
At = Annotated[str | None, typer.Option(metavar="TIME", help="The only time.")]
Start = Annotated[str | None, typer.Option(metavar="TIME", help="The earliest time that fires.")]
Until = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="No time from it on fires, and jobs that have not started by then expire."),
]
Zone = Annotated[str, typer.Option("--timezone", metavar="ZONE", help="An IANA name, such as Europe/Berlin.")]
Calendar = Annotated[
    str | None, typer.Option(help="A country, region or market with its holidays: DE, DE-BY, NYSE; goes with --closed.")
]
Closed = Annotated[
    str | None,
    typer.Option(metavar="skip|before|after", help="How to move a time on a weekend or holiday of --calendar."),
]
Payload = Annotated[
    Any, typer.Option(parser=_object, metavar="JSON", help='The fields of its jobs, as {"field": value}.')
]
TimeField = Annotated[str | None, typer.Option(metavar="FIELD", help="The field that gets the time of the firing.")]
Overlap = Annotated[
    str, typer.Option(metavar="skip|allow|queue|replace", help="What to do when the last job has not ended.")
]
Misfire = Annotated[
    str, typer.Option(metavar="skip|once|all", help="What to do with times missed while no dispatcher ran.")
]
CatchUp = Annotated[
    str | None, typer.Option(metavar="DURATION", help="The maximum age of a missed time that still fires.")
]
Jitter = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Delay firings by up to this; the delay is the same each time.")
]
Queue = Annotated[str | None, typer.Option(help="The queue of its jobs; as their kind says if not given.")]
Priority = Annotated[
    str | None, typer.Option(metavar="high|normal|low", help="Of its jobs; as their kind says if not given.")
]
ExpiresIn = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Its jobs expire when they have not started for so long.")
]
Name = Annotated[str, typer.Argument(metavar="NAME")]
Names = Annotated[list[str], typer.Argument(metavar="NAME…")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="How many times to print.")]
