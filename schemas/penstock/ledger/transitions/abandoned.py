"""Jobs that a dead worker left and no broker delivers again: acknowledged before they ran, or delivered too often."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from penstock.ledger.rows.arrows import Arrow
from penstock.ledger.rows.attempts import CrashReports
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, workers
from penstock.ledger.transitions.bury import bury_crashed, bury_message
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Envelope, is_id

ARROWS = (Arrow(State.RUNNING, State.DEAD, "its worker died"),)

_NONE = timedelta()


def bury_abandoned(database: Database, limit: int = 500, *, patience: timedelta = _NONE) -> list[str]:
    """Make dead letters (`crashed`) of `at_most_once` jobs whose worker's lease has ended. Returns their ids.

    Their fence rises, so a worker that was only stopped for a while writes nothing afterwards.

    Arguments:
        patience: how much longer than its lease a worker may be silent. There is no hurry, and a handler that holds
            the interpreter for long keeps its living worker from renewing the lease.
    """
    abandoned = (
        sa.select(jobs)
        .where(
            jobs.c.state == State.RUNNING,
            jobs.c.delivery == "at_most_once",
            ~_is_held(patience),
        )
        .order_by(jobs.c.id)
        .limit(limit)
    )
    if not database.read(lambda connection: connection.execute(abandoned).first()):
        return []

    def bury_all(connection: sa.Connection) -> list[str]:
        rows = connection.execute(database.locked(abandoned, skip=True)).all()
        crash_reports = CrashReports(connection)
        for row in rows:
            error = f"{crash_reports.describe(row)}, and delivery is at_most_once"
            bury_crashed(connection, database, row, "crashed", error)
        return [row.id for row in rows]

    return database.write(bury_all)


def bury_dropped(database: Database, envelope: Envelope, raw: bytes, detail: str) -> bool:
    """Record that the broker gave up on a message (`delivery_limit`). False: ask again later, its job still runs.

    Nothing is recorded of a copy, whose job has ended or waits in the ledger.
    """

    def read_state(connection: sa.Connection) -> tuple[str | None, bool]:
        select = sa.select(jobs.c.state, _is_held()).where(jobs.c.id == envelope.id)
        row = connection.execute(select).first()
        return (row[0], bool(row[1])) if row is not None else (None, False)

    # An id that no job can have is not looked up: PostgreSQL refuses a NUL in it.
    state, held = database.read(read_state) if is_id(envelope.headers.get("id")) else (None, False)
    if state == State.RUNNING and held:
        return False
    if state == State.RUNNING:

        def bury_running(connection: sa.Connection) -> None:
            left = sa.select(jobs).where(jobs.c.id == envelope.id, jobs.c.state == State.RUNNING)
            for row in connection.execute(database.locked(left.where(~_is_held()))):
                bury_crashed(connection, database, row, "delivery_limit", detail)

        database.write(bury_running)
    elif state is None or state == State.QUEUED:
        bury_message(database, envelope, raw, "delivery_limit", detail)
    return True


def _is_held(patience: timedelta = _NONE) -> sa.ColumnElement[bool]:
    """Whether a job's worker lives, or its lease has ended no longer ago than this."""
    alive = sa.and_(workers.c.lease_until > from_now(-patience), workers.c.stopped_at.is_(None))
    return sa.exists().where(workers.c.name == jobs.c.worker, alive)
