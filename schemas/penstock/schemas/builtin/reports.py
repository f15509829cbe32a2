"""`report.build`: run a named query and write its rows into a file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, JsonValue, model_validator

from penstock.config.errors import DatabaseUnavailable, StorageError
from penstock.schemas.builtin.emails import Addresses
from penstock.schemas.builtin.outages import OUTAGE
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.retry_policy import RetryPolicy


class BuildReport(
    Job,
    kind="report.build",
    queue="reports",
    timeout=1500,
    retry=RetryPolicy(
        max_attempts=5,
        first_delay=10,
        factor=3,
        by_error={
            DatabaseUnavailable: OUTAGE,
            StorageError: OUTAGE,
            OSError: OUTAGE,
            TimeoutError: RetryPolicy(),  # a query over its limit; an OSError to Python, and no outage
        },
    ),
):
    """Build the report that `[reports.NAME]` in penstock.toml describes."""

    report: str = Field(min_length=1, max_length=200)
    """NAME."""
    format: Literal["csv", "xlsx", "jsonl"] = "csv"
    """`jsonl` is a JSON object on each line."""
    gzip: bool = False
    """Compress the file, for csv and jsonl. XLSX is compressed by itself."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """By name, for those without a default or to override it."""
    email_to: Addresses | None = Field(default=None, max_length=100)
    """Recipients of a mail (template `report_ready`); None: no mail."""
    only_if_rows: bool = False
    """Without a row nothing is stored or mailed, and the job ends `discarded`."""
    email_as: Literal["link", "attachment"] | None = None
    """How the mail brings the file. None: as a link where the storage has links (S3), else attached."""

    @model_validator(mode="after")
    def _gzip_fits(self) -> BuildReport:
        if self.gzip and self.format not in ("csv", "jsonl"):
            raise ValueError(f"gzip is for csv and jsonl; a file of format {self.format} is compressed already")
        return self


class ReportBuilt(BaseModel):
    report: str
    key: str
    """Key of the file in the storage; made of report, parameters and job id."""
    format: str
    rows: int
    """Without the heading."""
    sheets: int
    """XLSX begins another at 1,048,576 rows; other formats have 1."""
    size: int
    """In bytes."""
    cut_cells: int = 0
    """Texts that were too long for a cell of XLSX; each ends with a note."""
    parameters: dict[str, JsonValue]
    """As used, defaults included."""
