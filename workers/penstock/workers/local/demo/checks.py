"""Checks of the results: each opens the artefact itself and compares it with what the job reported."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from PIL import ExifTags, Image

from penstock.workers.local.demo.world import inputs
from penstock.workers.local.demo.world.orders import ROWS
from penstock.workers.local.demo.world.stage import PDF, PHOTO, Stage

_CELLS = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_TRACES = (inputs.CAMERA.encode(), b"Exif\0\0", b"<x:xmpmeta", b"2026:05:17")
"""Bytes that a cleaned picture must not contain."""


class CheckFailed(Exception):
    """A result differs from the expected one."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def read(stage: Stage, key: str) -> bytes:
    with stage.storage.read(key) as stream:
        return stream.read()


def check_photo(stage: Stage, result: dict[str, Any]) -> str:
    """The original is untouched; the copies are upright, of the right size and without metadata."""
    original = stage.uploads[PHOTO]
    with Image.open(io.BytesIO(original)) as source:
        expect(source.getexif().get_ifd(ExifTags.IFD.GPSInfo), "the photo that went in has no GPS position")
    _check_upload(stage, result, original, "image/jpeg")
    expect((result["width"], result["height"]) == (inputs.WIDTH, inputs.HEIGHT), "the photo was not turned upright")
    _check_picture(read(stage, result["clean"]), "JPEG", inputs.WIDTH, inputs.HEIGHT)
    for thumbnail in result["thumbnails"]:
        side = thumbnail["side"]
        _check_picture(read(stage, thumbnail["key"]), "WEBP", side, side * inputs.HEIGHT // inputs.WIDTH)
    sides = [thumbnail["side"] for thumbnail in result["thumbnails"]]
    expect(sides == list(stage.settings.uploads.thumbnails), f"thumbnails are {sides}")
    return f"{len(sides)} thumbnails, EXIF and GPS gone"


def check_pdf(stage: Stage, result: dict[str, Any]) -> str:
    _check_upload(stage, result, stage.uploads[PDF], "application/pdf")
    return f"{result['size']:,} bytes, SHA-256 correct"


def check_csv(stage: Stage, result: dict[str, Any]) -> str:
    rows = list(csv.reader(io.StringIO(read(stage, result["key"]).decode("utf-8"), newline="")))
    expect(rows[0][-1] == "cents", f"the CSV's heading is {rows[0]}")
    _check_orders(stage, result, len(rows) - 1, sum(int(row[-1]) for row in rows[1:]))
    return f"{len(rows) - 1:,} rows"


def check_xlsx(stage: Stage, result: dict[str, Any]) -> str:
    rows = cents = 0
    for cells in _xlsx_rows(read(stage, result["key"])):
        rows, cents = rows + 1, cents + int(cells[-1])
    _check_orders(stage, result, rows, cents)
    return f"{rows:,} rows"


def check_towns(stage: Stage, result: dict[str, Any]) -> None:
    rows = list(csv.reader(io.StringIO(read(stage, result["key"]).decode("utf-8"), newline="")))[1:]
    expect(sum(int(row[1]) for row in rows) == ROWS, "the scheduled report does not count every order")
    expect(sum(int(row[2]) for row in rows) == stage.order_cents, "the scheduled report's sums are wrong")


def check_links(stage: Stage, message: EmailMessage) -> int:
    """Each link in a mail leads to a report, and all of them together hold every order. Returns how many there are."""
    body = message.get_body(("plain",))
    text = body.get_content() if body is not None else ""
    links = re.findall(r"file://(/\S+)", text)
    rows = 0
    for link in links:
        path = Path(unquote(link))
        expect(path.is_relative_to(stage.folder), f"a link leads to {path}")
        rows += len(list(csv.reader(io.StringIO(path.read_text("utf-8"), newline="")))) - 1
    expect(rows == ROWS, f"the linked reports hold {rows:,} of {ROWS:,} orders")
    return len(links)


def check_customers(stage: Stage) -> None:
    """The table holds what the API holds, record by record."""
    with closing(sqlite3.connect(stage.customers)) as connection:
        customers = {
            number: (name, credit)
            for number, name, credit in connection.execute("SELECT id, name, credit FROM customers")
        }
    count, records = len(customers), stage.api.records
    expect(count == len(records), f"the table holds {count} of {len(records)} records")
    for number, record in records.items():
        name, credit = customers[number]
        right = name == record["name"] and round(Decimal(str(credit)), 2) == Decimal(record["credit"]["limit"])
        expect(right, f"record {number} is {name}, {credit} in the table and {record} in the API")


def _check_upload(stage: Stage, result: dict[str, Any], original: bytes, media_type: str) -> None:
    expect(result["media_type"] == media_type, f"its media type is {result['media_type']}")
    expect(result["sha256"] == hashlib.sha256(original).hexdigest(), "its hash is wrong")
    expect(read(stage, result["original"]) == original, "the original was changed")
    expect(json.loads(read(stage, result["metadata"])) == result, "metadata.json differs from the job's result")


def _check_picture(content: bytes, format: str, width: int, height: int) -> None:
    for trace in _TRACES:
        expect(trace not in content, f"a {format} copy still holds {trace!r}")
    with Image.open(io.BytesIO(content)) as picture:
        expect(picture.format == format, f"a {format} copy is {picture.format}")
        expect(picture.size == (width, height), f"a {format} copy is {picture.size}, not {(width, height)}")
        expect(not picture.getexif(), f"a {format} copy has EXIF")
        sun = picture.convert("RGB").getpixel(
            (inputs.SUN[0] * width // inputs.WIDTH, inputs.SUN[1] * height // inputs.HEIGHT)
        )
        expect(isinstance(sun, tuple) and sun[0] > 230 and sun[2] > 130, f"a {format} copy is not upright: no sun")


def _check_orders(stage: Stage, result: dict[str, Any], rows: int, cents: int) -> None:
    expect(rows == ROWS, f"the file has {rows:,} rows, the database has {ROWS:,}")
    expect(result["rows"] == rows, f"the result names {result['rows']:,} rows, the file has {rows:,}")
    expect(cents == stage.order_cents, f"the amounts add up to {cents}, but to {stage.order_cents} in the database")


def _xlsx_rows(content: bytes) -> Iterator[list[str]]:
    """The values of each row but the heading, of all sheets."""
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        names = [name for name in book.namelist() if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", name)]
        for name in sorted(names):
            with book.open(name) as sheet:
                heading = True
                for _, row in ElementTree.iterparse(sheet):  # noqa: S314  # a file of our own
                    if row.tag == f"{_CELLS}row":
                        if not heading:
                            yield [value.text or "" for value in row.iter(f"{_CELLS}v")]
                        heading = False
                        row.clear()
