"""Options that several commands share."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w|)")


def duration(text: str) -> timedelta:
    """`90`, `30s`, `5m`, `1h`, `2d`, `1.5h`; without a unit it is seconds."""
    match = _DURATION.fullmatch(text.strip().lower())
    try:
        if match is not None:
            return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        pass
    raise typer.BadParameter(f"{text!r} is not a duration; write 90, 30s, 5m, 1h or 2d")


def moment(text: str) -> datetime:
    """An ISO 8601 time with its offset."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time; write it as 2026-03-01T09:00+01:00") from None
    if time.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no offset; add one, such as +01:00, or Z for UTC")
    return time.astimezone(UTC)


def size(text: str) -> int:
    """`512MB`, `1GiB`, or a number of bytes; at least one."""
    from penstock.config.sections.values import read_size

    try:
        if (bytes := read_size(text)) > 0:
            return bytes
        raise ValueError(f"{text!r} is not above zero")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_PER = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*([smh])")


def rate(text: str) -> float:
    """`50/s`, `600/m`, `1000/h`: how many in a second."""
    match = _RATE.fullmatch(text.strip().lower())
    per_second = float(match[1]) / _PER[match[2]] if match is not None else 0.0
    if not 0 < per_second <= 1_000_000:
        raise typer.BadParameter(f"{text!r} is not a rate; write 50/s, 600/m or 1000/h")
    return per_second


def past(text: str) -> datetime:
    """A time, or how long ago."""
    if _DURATION.fullmatch(text.strip().lower()):
        return datetime.now(UTC) - duration(text)
    try:
        return moment(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{error.message}; or how long ago: 1h, 2d") from None


def parse_json(text: str, option: str | None = None, *, or_stdin: bool = False) -> Any:
    """The value of a JSON text; `or_stdin`: `-` reads it from standard input."""
    try:
        return json.loads(typer.get_text_stream("stdin").read() if or_stdin and text == "-" else text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from None


Actors = Annotated[
    list[str] | None,
    typer.Option(
        "--dramatiq", metavar="MODULE", help="A module with actors of Dramatiq's to adopt; may be given repeatedly."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Import a module with kinds or handlers; may be given repeatedly."),
]
CeleryApp = Annotated[
    str | None,
    typer.Option("--celery", metavar="MODULE:APP", help="A Celery application whose tasks to adopt."),
]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]
LogLevel = Annotated[str, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.")]
