"""Cancelling workflows: their running steps stop, and those of the workflows in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.ledger.transitions.cancel import cancel_all
from penstock.ledger.workflows.read import graph_of
from penstock.schemas.states import FINAL
from penstock.schemas.workflows import StepState, WorkflowState

_STOPPABLE = (WorkflowState.RUNNING, WorkflowState.FAILING)


def cancel_workflows(connection: sa.Connection, database: Database, ids: Sequence[str], *, undo: bool) -> None:
    """Cancel the jobs of these workflows' steps: waiting jobs at once, running ones through their workers. The
    dispatcher does the rest as they end.

    Arguments:
        undo: run the compensations of the steps that are done.
    """
    ids = sorted(ids)
    while ids:
        # A workflow that compensates is left alone: that runs to its end.
        stoppable = sa.select(workflows.c.id).where(
            database.among(workflows.c.id, ids), workflows.c.state.in_(_STOPPABLE)
        )
        ids = list(connection.scalars(stoppable.order_by(workflows.c.id)))
        change = {"state": WorkflowState.CANCELLING, "ends_as": WorkflowState.CANCELLED, "undo": undo}
        is_running = sa.and_(database.among(workflows.c.id, ids), workflows.c.state == WorkflowState.RUNNING)
        connection.execute(sa.update(workflows).where(is_running).values(**change))
        running = sa.and_(database.among(steps.c.workflow_id, ids), steps.c.state == StepState.RUNNING)
        sent = list(connection.scalars(sa.select(steps.c.job_id).where(running, steps.c.job_id.is_not(None))))
        inner = []
        if sent:
            select = sa.select(workflows.c.id).where(database.among(workflows.c.id, sent)).order_by(workflows.c.id)
            inner = list(connection.scalars(select))
            cancel_all(connection, database, sorted(set(sent) - set(inner)), datetime.now(UTC))
        connection.execute(
            sa.update(steps)
            .where(database.among(steps.c.workflow_id, ids), steps.c.number == 0)
            .values(due_at=from_now())
        )
        ids = inner


def finish_without_definition(connection: sa.Connection, database: Database, workflow_id: str, undo: bool) -> bool:
    """End a workflow that is being cancelled, without its definition. Returns False where a step still runs, or where
    compensations must run first."""
    graph = json.loads(graph_of(connection, workflow_id))
    if undo and any("undoes" in step for step in graph.values()):
        return False
    running = sa.and_(steps.c.workflow_id == workflow_id, steps.c.state == StepState.RUNNING)
    unfinished = sa.select(steps.c.step).join(jobs, jobs.c.id == steps.c.job_id)
    if connection.execute(unfinished.where(running, jobs.c.state.not_in(sorted(FINAL))).limit(1)).first():
        return False
    now = datetime.now(UTC)
    connection.execute(sa.update(steps).where(running).values(state=StepState.CANCELLED, finished_at=now))
    connection.execute(sa.update(steps).where(steps.c.workflow_id == workflow_id).values(due_at=None))
    change = {"state": WorkflowState.CANCELLED, "finished_at": now, "error": None}
    connection.execute(sa.update(workflows).where(workflows.c.id == workflow_id).values(**change))
    cancel_all(connection, database, [workflow_id], now)
    return True
