"""Jobs that a dead worker left and no broker delivers again: acknowledged before they ran, or delivered too often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.arrows import Arrow
from penstock.ledger.rows.attempts import CrashReports
from penstock.ledger.rows.jobs import ID_TAKEN, IDENTITY, id_taken
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, workers
from penstock.ledger.transitions.bury import bury_crashed, bury_message, has_id_of_another
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Envelope, is_id

ARROWS = (Arrow(State.RUNNING, State.DEAD, "its worker died"),)

_NONE = timedelta()


def find_abandoned(database: Database, limit: int = 500, *, patience: timedelta = _NONE) -> list[str]:
    """Ids of `at_most_once` jobs whose worker's lease has ended.

    Arguments:
        patience: how much longer than its lease a worker may be silent. It need not be quick, and a handler that holds
            the interpreter for long keeps its living worker from renewing the lease.
    """
    select = _abandoned(patience).with_only_columns(jobs.c.id).order_by(jobs.c.id).limit(limit)
    return database.read(lambda connection: list(connection.scalars(select)))


def bury_abandoned(
    database: Database, job_ids: Sequence[str] | None = None, *, patience: timedelta = _NONE
) -> list[str]:
    """Bury abandoned jobs as `crashed`. Returns their ids.

    Their fence rises, so a worker that was only stopped for a while writes nothing afterwards.

    Arguments:
        job_ids: of those that were found; one that is not abandoned any more stays. None: find them.
        patience: see `find_abandoned`.
    """
    if not (job_ids := find_abandoned(database, patience=patience) if job_ids is None else job_ids):
        return []
    abandoned = _abandoned(patience).where(database.among(jobs.c.id, job_ids)).order_by(jobs.c.id)

    def bury_all(connection: sa.Connection) -> list[str]:
        rows = connection.execute(database.locked(abandoned, skip=True)).all()
        crash_reports = CrashReports(connection)
        for row in rows:
            error = f"{crash_reports.describe(row)}, and delivery is at_most_once"
            bury_crashed(connection, database, row, "crashed", error)
        return [row.id for row in rows]

    return database.write(bury_all)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Fate of a message that the broker gave up on. True if it is settled.

    Attributes:
        settled: False: ask again later, its job still runs.
        dead_letter: id of the dead letter that it made; None: it was a copy.
    """

    settled: bool
    dead_letter: str | None = None

    def __bool__(self) -> bool:
        return self.settled


def bury_dropped(database: Database, envelope: Envelope, raw: bytes, detail: str) -> Dropped:
    """Record that the broker gave up on a message (`delivery_limit`).

    Nothing is recorded of a copy, whose job has ended or waits in the ledger.
    """

    def read_job(connection: sa.Connection) -> Any:
        select = sa.select(jobs.c.state, _is_held().label("held"), *IDENTITY).where(jobs.c.id == envelope.id)
        return connection.execute(select).first()

    # An id that no job can have is not looked up: PostgreSQL refuses a NUL in it.
    job = database.read(read_job) if is_id(envelope.headers.get("id")) else None
    if job is not None and has_id_of_another(job, envelope):
        return Dropped(True, bury_message(database, envelope, raw, ID_TAKEN, id_taken(envelope.id)))
    state, held = (None, False) if job is None else (job.state, bool(job.held))
    if state == State.RUNNING and held:
        return Dropped(False)
    if state == State.RUNNING:

        def bury_running(connection: sa.Connection) -> str | None:
            left = sa.select(jobs).where(jobs.c.id == envelope.id, jobs.c.state == State.RUNNING)
            row = connection.execute(database.locked(left.where(~_is_held()))).first()
            if row is None:
                return None
            bury_crashed(connection, database, row, "delivery_limit", detail)
            return str(row.id)

        return Dropped(True, database.write(bury_running))
    if state is None or state == State.QUEUED:
        return Dropped(True, bury_message(database, envelope, raw, "delivery_limit", detail))
    return Dropped(True)


def _abandoned(patience: timedelta) -> sa.Select[Any]:
    return sa.select(jobs).where(jobs.c.state == State.RUNNING, jobs.c.delivery == "at_most_once", ~_is_held(patience))


def _is_held(patience: timedelta = _NONE) -> sa.ColumnElement[bool]:
    """Whether a job's worker lives, or its lease has ended no longer ago than this."""
    alive = sa.and_(workers.c.lease_until > from_now(-patience), workers.c.stopped_at.is_(None))
    return sa.exists().where(workers.c.name == jobs.c.worker, alive)
