"""The file of a report, in the format that its job names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from penstock.config.sections.builtin.reports import ReportSettings
from penstock.schemas.builtin.reports import BuildReport
from penstock.workers.builtin.reports.text_files import CsvFile, JsonLines, open_text
from penstock.workers.builtin.reports.workbooks import open_xlsx

_MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


class ReportFile(Protocol):
    """Takes rows of Python values in the order of the heading.

    Attributes:
        sheets: how many sheets there are by now.
        cut_cells: texts that were too long for a cell.
    """

    sheets: int
    cut_cells: int

    def write(self, row: Sequence[Any]) -> None: ...


def suffix_of(job: BuildReport) -> str:
    """The end of the file's name, such as `csv` or `csv.gz`."""
    return f"{job.format}.gz" if job.gzip else job.format


def media_type_of(job: BuildReport) -> str:
    return "application/gzip" if job.gzip else _MEDIA_TYPES[job.format]


@contextmanager
def open_file(
    job: BuildReport, report: ReportSettings, path: Path, heading: Sequence[str], created_at: datetime
) -> Iterator[ReportFile]:
    """A file that is complete when the block ends well.

    Raises:
        Permanent: the format cannot hold that much.
    """
    match job.format:
        case "csv":
            with open_text(path, compressed=job.gzip, bom=report.csv_bom) as file:
                yield CsvFile(file, heading, formulas=report.csv_formulas)
        case "jsonl":
            with open_text(path, compressed=job.gzip) as file:
                yield JsonLines(file, heading)
        case "xlsx":
            title, zone = report.title or job.report, ZoneInfo(report.timezone)
            with open_xlsx(path, heading, title=title, created=created_at, zone=zone) as workbook:
                yield workbook
