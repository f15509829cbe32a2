"""`report.build`: run a named query and write its rows as CSV or XLSX."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from penstock.schemas.builtin.emails import Addresses
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.retry_policy import RetryPolicy


class BuildReport(Job, kind="report.build", queue="reports", timeout=1500, retry=RetryPolicy(max_attempts=5)):
    """Build the report that `[reports.NAME]` in penstock.toml describes."""

    report: str = Field(min_length=1, max_length=200)
    """NAME."""
    format: Literal["csv", "xlsx"] = "csv"
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """By name, for those without a default or to override it."""
    email_to: Addresses | None = None
    """Recipients of a mail with a link (template `report_ready`); None: no mail."""


class ReportBuilt(BaseModel):
    report: str
    key: str
    """Key of the file in the storage; made of report, parameters and job id."""
    format: str
    rows: int
    """Without the heading."""
    sheets: int
    """1 for CSV; XLSX begins another at 1,048,576 rows."""
    size: int
    """In bytes."""
    parameters: dict[str, JsonValue]
    """As used, defaults included."""
