"""Rows as an XLSX workbook, in constant memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from penstock.workers.builtin.reports.text_files import plain_text
from penstock.workers.handlers.returns import Permanent

MAX_ROWS = 1_048_576
"""Rows of an XLSX sheet, the heading included."""
MAX_COLUMNS = 16_384
MAX_CELL = 32_767
"""UTF-16 units in an XLSX cell."""
_FIRST_DAY = date(1900, 3, 1)
"""Excel counts a 29 February 1900 that never was; dates before it would be a day off."""


class Workbook:
    """A workbook; starts another sheet when one is full."""

    def __init__(self, workbook: Any, heading: Sequence[str], *, title: str, zone: ZoneInfo, max_rows: int) -> None:
        if len(heading) > MAX_COLUMNS:
            raise Permanent(f"{len(heading)} columns, but a sheet holds {MAX_COLUMNS}; use format csv or jsonl")
        self.sheets = self.cut_cells = 0
        self._workbook, self._heading, self._zone, self._max_rows = workbook, heading, zone, max_rows
        self._title = re.sub(r"[\[\]:*?/\\\x00-\x1f]", " ", title).strip().strip("'") or "Report"
        self._bold = workbook.add_format({"bold": True})
        self._day = workbook.add_format({"num_format": "yyyy-mm-dd"})
        self._instant = workbook.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
        self._clock = workbook.add_format({"num_format": "hh:mm:ss"})
        self._next_sheet()

    def write(self, row: Sequence[Any]) -> None:
        if self._row >= self._max_rows:
            self._next_sheet()
        for column, value in enumerate(row):
            self._cell(column, value)
        self._row += 1

    def _next_sheet(self) -> None:
        self.sheets += 1
        suffix = f" {self.sheets}" if self.sheets > 1 else ""
        self._sheet = self._workbook.add_worksheet(self._title[: 31 - len(suffix)] + suffix)
        self._sheet.freeze_panes(1, 0)
        for column, name in enumerate(self._heading):
            self._sheet.write_string(0, column, self._fitting(name), self._bold)
        self._row = 1

    def _cell(self, column: int, value: Any) -> None:
        sheet, row = self._sheet, self._row
        match value:
            case None:
                pass
            case bool():
                sheet.write_boolean(row, column, value)
            case int() | float() | Decimal() if _fits_a_double(value):
                sheet.write_number(row, column, value)
            case datetime() if value.date() >= _FIRST_DAY:
                local = value.astimezone(self._zone).replace(tzinfo=None) if value.tzinfo else value
                sheet.write_datetime(row, column, local, self._instant)
            case date() if not isinstance(value, datetime) and value >= _FIRST_DAY:
                sheet.write_datetime(row, column, value, self._day)
            case time() if value.tzinfo is None:
                sheet.write_datetime(row, column, value, self._clock)
            case _:
                # write_string: `write` would make formulas and links of text.
                sheet.write_string(row, column, self._fitting(plain_text(value)))

    def _fitting(self, text: str) -> str:
        """A text that is too long for a cell, cut, with a note at its end."""
        if len(text) <= MAX_CELL // 2 or len(units := text.encode("utf-16-le", "replace")) <= 2 * MAX_CELL:
            return text
        self.cut_cells += 1
        note = f"… [cut: {len(text)} characters]"
        return units[: 2 * (MAX_CELL - len(note))].decode("utf-16-le", "ignore") + note


@contextmanager
def open_xlsx(
    path: Path,
    heading: Sequence[str],
    *,
    title: str,
    created: datetime,
    zone: ZoneInfo,
    max_rows: int = MAX_ROWS,
) -> Iterator[Workbook]:
    """A workbook that is written to `path` when the block ends well.

    Raises:
        Permanent: more columns or bytes than the format can hold.
    """
    import xlsxwriter  # imported lazily: only workers that write workbooks need its memory
    from xlsxwriter.exceptions import FileSizeError

    options = {"constant_memory": True, "tmpdir": str(path.parent)}
    workbook = xlsxwriter.Workbook(str(path), options)
    workbook.set_properties({"title": title, "created": created.replace(tzinfo=None)})
    try:
        yield Workbook(workbook, heading, title=title, zone=zone, max_rows=max_rows)
    except BaseException:
        # xlsxwriter cannot discard a workbook: close() would write all of it.
        for sheet in workbook.worksheets():
            sheet.row_data_fh.close()
        raise
    try:
        workbook.close()
    except FileSizeError as error:
        raise Permanent("more than 4 GB of rows, but a workbook holds less; use another format") from error


def _fits_a_double(value: int | float | Decimal) -> bool:
    """Whether Excel, which keeps 15 digits, shows the number as it is; identifiers of 18 digits must not be rounded."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 10**15
    return value.is_finite() and (value.is_zero() or len(value.normalize().as_tuple().digits) <= 15)
