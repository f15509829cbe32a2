"""Status of one job: for handles, the gateway and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.queries.results import StoredResult
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import WAITING, State
from penstock.schemas.storage import Storage


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` (None: unknown), and a note."""

    done: int
    total: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Status of a job on record.

    Attributes:
        attempt: number of the last attempt that started; 0 before the first.
        failures, crashes: so far.
        due_at: when it is due, while it waits in the ledger.
        error: of the last failed attempt, in a line.
        key, tenant: as it was enqueued.
        stored: its result, where that is too large for the ledger.
    """

    id: str
    kind: str | None
    queue: str | None
    state: State
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    enqueued_at: datetime | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker: str | None = None
    error: str | None = None
    progress: Progress | None = None
    key: str | None = None
    tenant: str | None = None
    recorded: Any = field(default=None, repr=False)
    stored: StoredResult | None = field(default=None, repr=False, compare=False)

    @property
    def result(self) -> Any:
        """Return value of the handler, as JSON values; None unless it succeeded. A large one is read from storage here.

        Raises:
            StorageError: it cannot be read; ObjectNotFound: it is gone.
        """
        return self.recorded if self.stored is None else self.stored.value()

    @property
    def final(self) -> bool:
        return self.state.final


def read_status(
    database: Database, job_id: str, *, open_storage: Callable[[], Storage] | None = None
) -> JobStatus | None:
    """The job's status; None while the ledger does not know it (waiting in the broker, or `track=False`).

    Arguments:
        open_storage: for a result that is not in the ledger, when it is asked for.

    Raises:
        LedgerUnavailable: the database cannot be reached.
    """
    row = database.read(lambda connection: connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).first())
    if row is None:
        return None
    progress = None
    if row.progress_done is not None:
        progress = Progress(row.progress_done, row.progress_total, row.progress_note)
    return JobStatus(
        id=row.id,
        kind=row.kind,
        queue=row.queue,
        state=State(row.state),
        attempt=row.attempt,
        failures=row.failures,
        crashes=row.crashes,
        enqueued_at=row.enqueued_at,
        due_at=row.due_at if row.state in WAITING else None,
        started_at=row.started_at,
        finished_at=row.finished_at,
        worker=row.worker,
        error=row.error,
        progress=progress,
        key=row.key,
        tenant=row.tenant,
        recorded=None if row.result is None else json.loads(row.result),
        stored=None if row.result_ref is None else StoredResult(row.result_ref, open_storage),
    )
