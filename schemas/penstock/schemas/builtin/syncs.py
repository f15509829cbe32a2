"""`sync.run`: bring what changed in an HTTP API into a table."""

from __future__ import annotations

from pydantic import BaseModel, Field

from penstock.schemas.builtin.outages import OUTAGE
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.retry_policy import RetryPolicy

# An API or database that is down is a Retry of the handler; an error that it raises is met no better later.
_RETRY = OUTAGE.model_copy(update={"by_error": {Exception: RetryPolicy(max_attempts=10)}})


class RunSync(Job, kind="sync.run", queue="syncs", timeout=1500, retry=_RETRY):
    """Run the sync that `[syncs.NAME]` in penstock.toml describes, from where the last run stopped."""

    sync: str = Field(min_length=1, max_length=191)
    """NAME."""
    full: bool = False
    """Start at the first record, whatever the last run did. Rows are deleted only with `delete_missing`."""


class SyncFinished(BaseModel):
    """Counts are those of the last attempt: pages that an earlier one had saved are not fetched again."""

    sync: str
    pages: int
    fetched: int
    """Records in those pages."""
    inserted: int
    updated: int
    skipped: int
    """Records left out as `on_bad_record` says, and older copies of an id within one page."""
    older: int = 0
    """Records left out because their row has a later change."""
    deleted: int = 0
    """Rows deleted by tombstones, and by `delete_missing`."""
    ahead: int = 0
    """Records whose change is more than a day in the future. They are written, and do not move the start of the next
    run."""
    style: str = "auto"
    """Style of the pages, as declared or detected: see `pages`."""
    missing: list[str] = Field(default_factory=list)
    """Columns whose field some record lacks."""
    new_fields: list[str] = Field(default_factory=list)
    """Fields of the records that no column has."""
    cursor: str | None
    """Start of the next run: the greatest change seen, else the last page's cursor."""
