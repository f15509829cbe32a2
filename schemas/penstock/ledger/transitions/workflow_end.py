"""The end of a workflow: its own job, which waited in the ledger for its last step, ends with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from penstock.ledger.rows import dead_letters as dead_letter
from penstock.ledger.rows import steps
from penstock.ledger.rows.arrows import fan
from penstock.ledger.rows.ended import count_rows, final_columns
from penstock.ledger.rows.rates.counting import count_ends
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.bury import bury
from penstock.schemas.states import Outcome, State

ARROWS = fan((State.SCHEDULED,), (State.SUCCEEDED, State.CANCELLED, State.DEAD), "ended with its workflow")

_SUCCEED_JOB = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"))
    .values(
        state=State.SUCCEEDED,
        due_at=None,
        error=None,
        cancel_requested=False,
        **{
            name: sa.bindparam(f"b_{name}", type_=jobs.c[name].type) for name in ("finished_at", "result", "result_ref")
        },
    )
)


def succeed_own_jobs(
    connection: sa.Connection, database: Database, results: Mapping[str, tuple[str | None, str | None]]
) -> None:
    """End the own jobs of workflows that succeeded.

    Arguments:
        results: id of the workflow → `result` and `result_ref`.
    """
    if results:
        now = datetime.now(UTC)
        rows = [
            {"b_id": workflow_id, "b_finished_at": now, "b_result": result, "b_result_ref": result_ref}
            for workflow_id, (result, result_ref) in results.items()
        ]
        database.execute_many(connection, _SUCCEED_JOB, rows)
        own_jobs = sa.select(jobs.c.kind, jobs.c.queue).where(database.among(jobs.c.id, list(results)))
        count_rows(connection, Outcome.SUCCEEDED, connection.execute(own_jobs))


def cancel_own_job(connection: sa.Connection, workflow_id: str) -> None:
    """End the own job of a workflow that was cancelled."""
    _end_own_job(connection, workflow_id, State.CANCELLED, None, datetime.now(UTC))
    own_job = sa.select(jobs.c.kind, jobs.c.queue).where(jobs.c.id == workflow_id)
    count_rows(connection, Outcome.CANCELLED, connection.execute(own_job))


def bury_own_job(
    connection: sa.Connection, database: Database, workflow_id: str, kind: str, queue: str, error: str | None
) -> None:
    """End the own job of a workflow that failed: it becomes a dead letter."""
    now = datetime.now(UTC)
    row = dead_letter.of_job(workflow_id, kind, queue, reason="failed", detail=error or "", created_at=now)
    bury(connection, database, [row])
    _end_own_job(connection, workflow_id, State.DEAD, error, now)
    count_ends(connection, Outcome.DEAD, {(kind, queue): 1})


def _end_own_job(connection: sa.Connection, workflow_id: str, state: State, error: str | None, now: datetime) -> None:
    change = final_columns(state, now, error=error, cancel_requested=False)
    connection.execute(sa.update(jobs).where(jobs.c.id == workflow_id).values(**change))


def wake_outer_workflows(connection: sa.Connection, database: Database, workflow_ids: Sequence[str]) -> None:
    """Let the dispatcher look at the steps that run these workflows."""
    steps.wake_steps_of(connection, database, workflow_ids)
