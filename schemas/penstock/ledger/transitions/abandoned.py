"""Jobs that a dead worker left and no broker delivers again: acknowledged before they ran, or delivered too often."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members.leases import excuse_outage
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

_BATCH = 500
_NONE = timedelta()


def bury_abandoned(database: Database, *, patience: timedelta = _NONE, lease: timedelta = _NONE) -> list[str]:
    """Bury `at_most_once` jobs as `crashed` whose worker's lease has ended. Returns their ids.

    Their fence rises, so a worker that was only stopped for a while writes nothing afterwards.

    Arguments:
        patience: how much longer than its lease a worker may be silent. It need not be quick, and a handler that holds
            the interpreter for long keeps its living worker from renewing the lease.
        lease: see `excuse_outage`.
    """
    abandoned = _abandoned(patience).order_by(jobs.c.id).limit(_BATCH)
    # Looking takes no lock, and almost always finds nothing.
    if database.read(lambda connection: connection.execute(abandoned.limit(1)).first()) is None:
        return []

    def bury_all(connection: sa.Connection) -> list[str]:
        excuse_outage(connection, database, lease)
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


def bury_dropped(
    database: Database, envelope: Envelope, raw: bytes, detail: str, *, lease: timedelta = _NONE
) -> Dropped:
    """Record that the broker gave up on a message (`delivery_limit`).

    Nothing is recorded of a copy, whose job has ended or waits in the ledger.

    Arguments:
        lease: see `excuse_outage`.
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
            excuse_outage(connection, database, lease)
            left = sa.select(jobs).where(jobs.c.id == envelope.id, jobs.c.state == State.RUNNING)
            row = connection.execute(database.locked(left.where(~_is_held()))).first()
            if row is None:
                return None
            bury_crashed(connection, database, row, "delivery_limit", detail)
            return str(row.id)

        dead_letter = database.write(bury_running)
        return Dropped(dead_letter is not None, dead_letter)
    if state is None or state == State.QUEUED:
        return Dropped(True, bury_message(database, envelope, raw, "delivery_limit", detail))
    return Dropped(True)


def _abandoned(patience: timedelta) -> sa.Select[Any]:
    return sa.select(jobs).where(jobs.c.state == State.RUNNING, jobs.c.delivery == "at_most_once", ~_is_held(patience))


def _is_held(patience: timedelta = _NONE) -> sa.ColumnElement[bool]:
    """Whether a job's worker lives, or its lease has ended no longer ago than this."""
    alive = sa.and_(workers.c.lease_until > from_now(-patience), workers.c.stopped_at.is_(None))
    return sa.exists().where(workers.c.name == jobs.c.worker, alive)
