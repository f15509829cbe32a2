"""Rows as CSV or as lines of JSON, one after the other."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_LEVEL = 6
"""Of gzip: 9 takes three times as long for a hundredth less."""


class CsvFile:
    """RFC 4180: commas, CRLF, quotes where needed; UTF-8.

    Arguments:
        formulas: keep text that a spreadsheet would run as a formula; False: put an apostrophe before it.
    """

    sheets, cut_cells = 1, 0

    def __init__(self, file: IO[str], heading: Sequence[str], *, formulas: bool = False) -> None:
        self._writer = csv.writer(file, lineterminator="\r\n")
        self._cell: Callable[[Any], str] = _text if formulas else _csv_cell
        self.write(heading)

    def write(self, row: Sequence[Any]) -> None:
        cell = self._cell
        self._writer.writerow([cell(value) for value in row])


class JsonLines:
    """A JSON object for each row, as UTF-8. Columns of the same name get a number: `id`, `id_2`.

    Numbers, booleans and documents keep their types. Decimals are numbers with all their digits. Infinity and NaN,
    which JSON lacks, are text.
    """

    sheets, cut_cells = 1, 0

    def __init__(self, file: IO[str], heading: Sequence[str]) -> None:
        self._file, self._names = file, [json.dumps(name, ensure_ascii=False) for name in distinct(heading)]

    def write(self, row: Sequence[Any]) -> None:
        pairs = zip(self._names, row, strict=True)
        self._file.write("{" + ", ".join(f"{name}: {_json(value)}" for name, value in pairs) + "}\n")


@contextmanager
def open_text(path: Path, *, compressed: bool, bom: bool = False) -> Iterator[IO[str]]:
    """A file for text in UTF-8, whose line ends are written as they are.

    Arguments:
        bom: begin with a byte order mark.
    """
    encoding = "utf-8-sig" if bom else "utf-8"
    with path.open("wb") as raw:
        if not compressed:
            with io.TextIOWrapper(raw, encoding, errors="replace", newline="") as file:
                yield file
        else:
            # No name and no time in its header: the same rows make the same bytes.
            with (
                gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as packed,
                io.TextIOWrapper(packed, encoding, errors="replace", newline="") as file,
            ):
                yield file


def distinct(names: Sequence[str]) -> list[str]:
    """The names of columns, with a number after those that were there before."""
    unique: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in unique:
            candidate, number = f"{name}_{number}", number + 1
        unique.append(candidate)
    return unique


def plain_text(value: Any) -> str:
    """A value as text that another program can read back."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case datetime() | date() | time():
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case dict() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)


def _text(value: Any) -> str:
    return "" if value is None else plain_text(value)


def _csv_cell(value: Any) -> str:
    if isinstance(value, (int, float, Decimal)):
        return plain_text(value)
    # A spreadsheet runs text that begins like a formula, even in quotes. https://owasp.org/www-community/attacks/CSV_Injection
    text = _text(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _json(value: Any) -> str:
    match value:
        case Decimal() if value.is_finite():
            return str(value)
        case float() if not math.isfinite(value):
            return f'"{value}"'
        case None | bool() | int() | float() | str():
            return json.dumps(value, ensure_ascii=False)
        case dict() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, default=plain_text)
        case _:
            return json.dumps(plain_text(value), ensure_ascii=False)
