"""Resuming a workflow that has ended: from its failed steps, from a given step, or all over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import steps, workflows
from penstock.ledger.transitions.replay.revive import revive_all
from penstock.ledger.workflows.read import graph_of
from penstock.ledger.workflows.rows import fresh_row
from penstock.schemas.workflows import BROKEN, StepState, WorkflowOutline, WorkflowState


def resume(
    connection: sa.Connection, database: Database, workflow_id: str, *, from_step: str | None = None
) -> list[str]:
    """Resume a workflow that has ended, and whose row the caller has locked. Returns the steps that go on.

    Jobs that are dead or were cancelled are tried again under their ids, so that an effect guarded by `ctx.once` stays
    done. Steps that were undone begin again, and so do the steps that follow them.

    Arguments:
        from_step: only this step and those that follow it begin again, with new jobs.

    Raises:
        InvalidState: the workflow has no such step.
    """
    graph = json.loads(graph_of(connection, workflow_id))
    select = sa.select(steps).where(steps.c.workflow_id == workflow_id, steps.c.number == 0)
    rows = {row.step: row for row in connection.execute(select)}
    names = [name for name, step in graph.items() if "undoes" not in step]
    compensations = [name for name, step in graph.items() if "undoes" in step]
    if from_step is not None and from_step not in names:
        raise InvalidState(f"workflow {workflow_id} has no step {from_step!r}; it has {', '.join(names)}")
    stuck = [name for name in compensations if rows[name].state in BROKEN]
    if stuck and from_step is None:
        _try_again(connection, database, workflow_id, [rows[name] for name in stuck])
        _go_on(connection, database, workflow_id, {"state": WorkflowState.COMPENSATING})
        return stuck
    if from_step is not None:
        fresh, broken = _downstream(graph, {from_step}), []
    else:
        fresh = _downstream(graph, {name for name in names if _must_begin_again(rows[name])})
        broken = [name for name in names if rows[name].state in BROKEN and name not in fresh]
    _reset(connection, database, workflow_id, [*fresh, *compensations])
    _try_again(connection, database, workflow_id, [rows[name] for name in broken])
    _go_on(connection, database, workflow_id, {"state": WorkflowState.RUNNING, "ends_as": None})
    return [name for name in names if name in fresh or name in broken]


def restart(connection: sa.Connection, database: Database, workflow_id: str, outline: WorkflowOutline) -> list[str]:
    """Start a workflow all over, with the current definition."""
    connection.execute(sa.delete(steps).where(steps.c.workflow_id == workflow_id))
    names = [*outline.steps, *outline.compensations]
    connection.execute(database.insert(steps), [fresh_row(workflow_id, name) for name in names])
    graph = {"definition": outline.hash, "graph": outline.graph}
    _go_on(connection, database, workflow_id, {"state": WorkflowState.RUNNING, "ends_as": None, **graph})
    return list(outline.steps)


def _must_begin_again(row: Any) -> bool:
    was_never_sent = row.job_id is None and row.members is None
    return row.state == StepState.COMPENSATED or (row.state in BROKEN and was_never_sent)


def _downstream(graph: dict[str, Any], names: set[str]) -> set[str]:
    """These steps and all that need them, directly or not."""
    downstream: set[str] = set()
    while names - downstream:
        downstream |= names
        names = {
            name
            for name, step in graph.items()
            if downstream.intersection(step.get("needs", ())) and "undoes" not in step
        }
    return downstream


def _reset(connection: sa.Connection, database: Database, workflow_id: str, names: Sequence[str]) -> None:
    if not names:
        return
    theirs = sa.and_(steps.c.workflow_id == workflow_id, steps.c.step.in_(names))
    connection.execute(sa.delete(steps).where(theirs))
    connection.execute(database.insert(steps), [fresh_row(workflow_id, name) for name in names])


def _try_again(connection: sa.Connection, database: Database, workflow_id: str, rows: Sequence[Any]) -> None:
    for row in rows:
        its_rows = sa.and_(steps.c.workflow_id == workflow_id, steps.c.step == row.step)
        broken = sa.and_(its_rows, steps.c.state.in_(sorted(BROKEN)))
        jobs = connection.execute(sa.select(steps.c.number, steps.c.job_id).where(broken)).all()
        revive_all(connection, database, [job.job_id for job in jobs if job.job_id is not None])
        members = sum(job.number > 0 for job in jobs)
        # Due at once: a job that was replayed by hand may have ended since.
        change = {"state": StepState.RUNNING, "finished_at": None, "due_at": from_now()}
        connection.execute(sa.update(steps).where(broken).values(**change))
        count = {"done": steps.c.done - members, "failed": steps.c.failed - members, "error": None}
        connection.execute(sa.update(steps).where(its_rows, steps.c.number == 0).values(**count))


def _go_on(connection: sa.Connection, database: Database, workflow_id: str, change: dict[str, Any]) -> None:
    change = {"finished_at": None, "error": None, "undo": True, **change}
    connection.execute(sa.update(workflows).where(workflows.c.id == workflow_id).values(**change))
    its_steps = sa.and_(steps.c.workflow_id == workflow_id, steps.c.number == 0)
    connection.execute(sa.update(steps).where(its_steps).values(due_at=from_now()))
    revive_all(connection, database, [workflow_id], parked=True)
