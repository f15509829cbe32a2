"""Taking up a workflow that has ended: from what failed, from a step on, or all over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import steps, workflows
from penstock.ledger.transitions.revive import revive_all
from penstock.ledger.workflows.rows import PARKED, fresh_row
from penstock.schemas.workflows import BROKEN, Outline, StepState, WorkflowState


def resume(
    connection: sa.Connection, database: Database, workflow_id: str, *, from_step: str | None = None
) -> list[str]:
    """Take up a workflow whose row the caller has locked, and which has ended. Returns the steps that go on.

    Jobs that are dead or were cancelled are tried again under their ids, so that an effect guarded by `ctx.once` stays
    done. Steps that were undone begin anew, and so do those that follow them.

    Arguments:
        from_step: it and all that follow it begin anew, with new jobs, and nothing else does.

    Raises:
        InvalidState: there is no such step.
    """
    graph = json.loads(
        connection.execute(sa.select(workflows.c.graph).where(workflows.c.id == workflow_id)).scalar_one()
    )
    heads = {
        row.step: row
        for row in connection.execute(sa.select(steps).where(steps.c.workflow_id == workflow_id, steps.c.number == 0))
    }
    own = [name for name, one in graph.items() if "undoes" not in one]
    undoing = [name for name, one in graph.items() if "undoes" in one]
    if from_step is not None and from_step not in own:
        raise InvalidState(f"workflow {workflow_id} has no step {from_step!r}; it has {', '.join(own)}")
    stuck = [name for name in undoing if heads[name].state in BROKEN]
    if stuck and from_step is None:
        _try_again(connection, database, workflow_id, [heads[name] for name in stuck])
        _go_on(connection, database, workflow_id, {"state": WorkflowState.COMPENSATING})
        return stuck
    again = {from_step} if from_step is not None else {name for name in own if _is_to_begin_anew(heads[name])}
    again = _downstream(graph, again)
    broken = (
        [] if from_step is not None else [name for name in own if heads[name].state in BROKEN and name not in again]
    )
    _reset(connection, database, workflow_id, [*again, *undoing])
    _try_again(connection, database, workflow_id, [heads[name] for name in broken])
    _go_on(connection, database, workflow_id, {"state": WorkflowState.RUNNING, "ends_as": None})
    return [name for name in own if name in again or name in broken]


def restart(connection: sa.Connection, database: Database, workflow_id: str, definition: Outline) -> list[str]:
    """Begin all over, with the definition of now."""
    connection.execute(sa.delete(steps).where(steps.c.workflow_id == workflow_id))
    names = [*definition.steps, *definition.compensations]
    connection.execute(database.insert(steps), [fresh_row(workflow_id, name) for name in names])
    graph = {"definition": definition.hash, "graph": definition.graph}
    _go_on(connection, database, workflow_id, {"state": WorkflowState.RUNNING, "ends_as": None, **graph})
    return list(definition.steps)


def _is_to_begin_anew(head: Any) -> bool:
    never_sent = head.job_id is None and head.members is None
    return head.state == StepState.COMPENSATED or (head.state in BROKEN and never_sent)


def _downstream(graph: dict[str, Any], names: set[str]) -> set[str]:
    found: set[str] = set()
    while names - found:
        found |= names
        names = {
            name for name, one in graph.items() if found.intersection(one.get("needs", ())) and "undoes" not in one
        }
    return found


def _reset(connection: sa.Connection, database: Database, workflow_id: str, names: Sequence[str]) -> None:
    if not names:
        return
    mine = sa.and_(steps.c.workflow_id == workflow_id, steps.c.step.in_(names))
    connection.execute(sa.delete(steps).where(mine))
    connection.execute(database.insert(steps), [fresh_row(workflow_id, name) for name in names])


def _try_again(connection: sa.Connection, database: Database, workflow_id: str, heads: Sequence[Any]) -> None:
    for head in heads:
        mine = sa.and_(steps.c.workflow_id == workflow_id, steps.c.step == head.step, steps.c.state.in_(sorted(BROKEN)))
        rows = connection.execute(sa.select(steps.c.number, steps.c.job_id).where(mine)).all()
        ids = [row.job_id for row in rows if row.job_id is not None]
        revive_all(connection, database, ids)
        members = sum(row.number > 0 for row in rows)
        # Due at once: one that somebody has replayed before may have ended since.
        change = {"state": StepState.RUNNING, "finished_at": None, "due_at": from_now()}
        connection.execute(sa.update(steps).where(mine).values(**change))
        count = {"done": steps.c.done - members, "failed": steps.c.failed - members, "error": None}
        connection.execute(
            sa.update(steps)
            .where(steps.c.workflow_id == workflow_id, steps.c.step == head.step, steps.c.number == 0)
            .values(**count)
        )


def _go_on(connection: sa.Connection, database: Database, workflow_id: str, change: dict[str, Any]) -> None:
    change = {"finished_at": None, "error": None, "undo": True, **change}
    connection.execute(sa.update(workflows).where(workflows.c.id == workflow_id).values(**change))
    mine = sa.and_(steps.c.workflow_id == workflow_id, steps.c.number == 0)
    connection.execute(sa.update(steps).where(mine).values(due_at=from_now()))
    revive_all(connection, database, [workflow_id], after=PARKED)
