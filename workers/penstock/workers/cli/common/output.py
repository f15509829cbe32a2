"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from penstock.config.printable import printable

DRAWN = 200
"""Rows of a table with borders; a longer one takes too long to lay out."""

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


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """Print rows as a table, or as JSON. A list of more than `DRAWN` rows is printed as it comes, in plain columns.

    Arguments:
        columns: of the table, in order; JSON has all fields of the rows.
        empty: the line in place of an empty table.
    """
    rest = iter(rows)
    first = list(itertools.islice(rest, DRAWN + 1))
    if len(first) > DRAWN:
        _stream(first, rest, columns, as_json=as_json)
    elif as_json:
        print_json(first)
    elif not first:
        echo(empty, err=True)
    else:
        _draw(first, columns)


def _draw(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
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


def _stream(
    first: Sequence[Mapping[str, Any]], rest: Iterator[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool
) -> None:
    if as_json:
        opening = b"["
        for chunk in _chunks(first, rest):
            typer.echo(opening + b"\n" + b",\n".join(map(_encode, chunk)), nl=False)
            opening = b","
        typer.echo("\n]")
        return
    names = {name: name.replace("_", " ") for name in columns}
    # Of the first rows: the others are not there yet. A longer text moves what comes after it.
    width = {name: max(len(title), *(len(_text(row[name])) for row in first)) for name, title in names.items()}
    line = "  ".join([f"{{:{width[name]}}}" for name in columns[:-1]] + ["{}"]).format
    typer.echo(line(*names.values()))
    for chunk in _chunks(first, rest):
        lines = (
            line(*[value if type(value) is str else _text(value) for value in map(row.__getitem__, columns)])
            for row in chunk
        )
        typer.echo("\n".join(map(printable, lines)))


def _chunks(
    first: Sequence[Mapping[str, Any]], rest: Iterator[Mapping[str, Any]]
) -> Iterator[Sequence[Mapping[str, Any]]]:
    yield first
    while chunk := list(itertools.islice(rest, 1000)):
        yield chunk


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


def _encode(row: Mapping[str, Any]) -> bytes:
    """The row as `print_json` prints values, many times faster."""
    from pydantic_core import to_json

    # SQLAlchemy's names of columns are a class of text of its own, which takes longer than all the rest.
    plain = {
        name if type(name) is str else f"{name}": value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }
    return to_json(plain, timedelta_mode="float", fallback=_plain)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if type(value) is str:
        return value
    if isinstance(value, datetime):
        return f"{(value if value.tzinfo is UTC else value.astimezone(UTC)).isoformat(' ', 'seconds')[:19]}Z"
    if isinstance(value, dict | list):
        return json.dumps(value, default=_plain, ensure_ascii=False)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
