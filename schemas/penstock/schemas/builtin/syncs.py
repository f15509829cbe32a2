"""`sync.run`: bring what changed in an HTTP API into a table."""

from __future__ import annotations

from pydantic import BaseModel, Field

from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.retry_policy import RetryPolicy


class RunSync(Job, kind="sync.run", queue="syncs", timeout=1500, retry=RetryPolicy(max_attempts=10)):
    """Run the sync that `[syncs.NAME]` in penstock.toml describes, from where the last run stopped."""

    sync: str = Field(min_length=1, max_length=191)
    """NAME."""
    full: bool = False
    """Start at the first record, whatever the last run did. No row is deleted."""


class SyncFinished(BaseModel):
    """Counts are those of the last attempt: pages that an earlier one had saved are not fetched again."""

    sync: str
    pages: int
    fetched: int
    """Records in those pages."""
    inserted: int
    updated: int
    skipped: int
    """Records left out as `on_bad_record = "skip"` says, and earlier copies of an id within one page."""
    cursor: str | None
    """Start of the next run: the greatest change seen, else the last page's cursor."""
