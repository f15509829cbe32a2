"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from penstock.config.printable import printable

_OF_LINES = ("traceback", "error", "detail")
"""Fields whose lines are shown as lines; in others, such as ids and keys, the ends of lines are escaped."""


def echo(text: str = "", *, err: bool = False, lines: bool = False) -> None:
    """Print a text for people, its control characters escaped: ids, errors and the like may come from anyone.

    Arguments:
        lines: the text has several lines.
    """
    typer.echo(printable(text, lines=lines), err=err)


def print_json(value: Any) -> None:
    """Print a value as JSON; datetimes as ISO 8601."""
    typer.echo(json.dumps(value, indent=2, default=_plain, ensure_ascii=False))


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """Print rows as a table, or as JSON.

    Arguments:
        columns: of the table, in order; JSON has all fields of the rows.
        empty: the line in place of an empty table.
    """
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        echo(empty, err=True)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name == "id")
    for row in rows:
        table.add_row(*(printable(_text(row[name])) for name in columns))
    # Output into a file or pipe is not folded: it has no terminal.
    Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False).print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print a line for each field that has a value."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        if value not in (None, "", [], {}):
            text = _text(value)
            first, *rest = text.removesuffix("\n").split("\n") if name in _OF_LINES else [text]
            echo(f"{name.replace('_', ' '):<{width}}  {first}")
            for line in rest:
                echo(f"{'':<{width}}  {line}")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, dict | list):
        return json.dumps(value, default=_plain, ensure_ascii=False)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
