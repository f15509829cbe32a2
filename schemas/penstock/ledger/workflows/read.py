"""Workflows, their steps and the jobs of the steps, read for a dispatcher that advances them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now, has_passed
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.ledger.workflows.rows import StepRow
from penstock.schemas.states import State

BATCH = 2000
"""Rows of steps that are read in one transaction."""

STEP_COLUMNS = [field.name for field in fields(StepRow) if field.name not in ("seen_due_at", "changed")]

_WORKFLOWS = sa.select(
    *(workflows.c[name] for name in ("id", "kind", "state", "definition", "ends_as", "undo", "error"))
)
_OWN_JOBS = sa.select(
    *(jobs.c[name] for name in ("id", "state", "payload", "version", "tenant", "traceparent", "queue", "embed")),
    jobs.c.cancel_requested,
)
_STEPS = sa.select(steps.c.workflow_id, *(steps.c[name] for name in STEP_COLUMNS)).where(steps.c.number == 0)
_DUE_STEPS = sa.select(*(steps.c[name] for name in ("workflow_id", "number", "step", "state", "job_id", "due_at")))
_STEP_JOBS = sa.select(jobs.c.id, jobs.c.state, jobs.c.error, jobs.c.finished_at, jobs.c.embed)
_RESULTS = sa.select(jobs.c.id, jobs.c.result, jobs.c.result_ref)


def due_workflows(database: Database) -> tuple[list[str], bool]:
    """Ids of workflows with a due step, and whether there may be more."""
    due = sa.select(steps.c.workflow_id).where(steps.c.due_at <= from_now()).order_by(steps.c.due_at).limit(BATCH)
    ids = database.read(lambda connection: connection.scalars(due).all())
    return sorted(set(ids)), len(ids) == BATCH


def any_due() -> sa.ColumnElement[bool]:
    """Whether a step is due."""
    return has_passed(steps.c.due_at)


def lock_workflows(connection: sa.Connection, database: Database, ids: Sequence[str]) -> dict[str, Any]:
    """Id → row of these workflows, without those that another dispatcher has locked."""
    select = _WORKFLOWS.where(database.among(workflows.c.id, ids)).order_by(workflows.c.id)
    return {row.id: row for row in connection.execute(database.locked(select, skip=True)).all()}


def own_jobs(connection: sa.Connection, database: Database, workflow_ids: Sequence[str]) -> dict[str, Any]:
    """Id of a workflow → row of its own job."""
    return _jobs(connection, database, _OWN_JOBS, workflow_ids)


def step_rows(
    connection: sa.Connection, database: Database, workflow_ids: Sequence[str]
) -> dict[str, dict[str, StepRow]]:
    """Id of a workflow → its steps and compensations, by name."""
    rows: dict[str, dict[str, StepRow]] = defaultdict(dict)
    select = _STEPS.where(database.among(steps.c.workflow_id, workflow_ids))
    for workflow_id, step, *values in connection.execute(select).all():
        rows[workflow_id][step] = StepRow(step, *values)
    return rows


def due_steps(connection: sa.Connection, now: datetime) -> Sequence[Any]:
    """Steps, and jobs of fan-outs, that are due.

    Read them after the workflows are locked: what another dispatcher has applied meanwhile is not due any more.
    """
    return connection.execute(_DUE_STEPS.where(steps.c.due_at <= now).order_by(steps.c.due_at).limit(BATCH)).all()


def step_jobs(connection: sa.Connection, database: Database, job_ids: Sequence[str]) -> dict[str, Any]:
    """Id → row of these jobs: its state, error and end."""
    return _jobs(connection, database, _STEP_JOBS, job_ids)


def job_results(connection: sa.Connection, database: Database, job_ids: Sequence[str]) -> dict[str, Any]:
    """Id → row of these jobs: `result` and `result_ref`."""
    return _jobs(connection, database, _RESULTS, job_ids)


def fan_out_results(connection: sa.Connection, workflow_id: str, step: str) -> Sequence[Any]:
    """`result` and `result_ref` of the jobs of a fan-out that succeeded, in order."""
    members = (steps.c.workflow_id == workflow_id, steps.c.number > 0, steps.c.step == step)
    joined = _RESULTS.select_from(steps.join(jobs, jobs.c.id == steps.c.job_id)).order_by(steps.c.number)
    return connection.execute(joined.where(*members, jobs.c.state == State.SUCCEEDED)).all()


def graph_of(connection: sa.Connection, workflow_id: str) -> str:
    """The graph that a workflow started with, as JSON."""
    graph: str = connection.execute(sa.select(workflows.c.graph).where(workflows.c.id == workflow_id)).scalar_one()
    return graph


def _jobs(connection: sa.Connection, database: Database, select: sa.Select[Any], ids: Sequence[str]) -> dict[str, Any]:
    return {row.id: row for row in connection.execute(select.where(database.among(jobs.c.id, ids))).all()}
