"""What `advancing` reads of workflows and their steps, and how it writes that back."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.schemas.states import State
from penstock.workers.workflows.run import Row, Run

_HEAD = [field.name for field in fields(Row) if field.name not in ("seen_due_at", "changed")]

WORKFLOWS = sa.select(
    *(workflows.c[name] for name in ("id", "kind", "state", "definition", "ends_as", "undo", "error"))
)
OWN = sa.select(
    *(jobs.c[name] for name in ("id", "state", "payload", "version", "tenant", "traceparent", "queue", "embed"))
)
HEADS = sa.select(steps.c.workflow_id, *(steps.c[name] for name in _HEAD))
DUE = sa.select(*(steps.c[name] for name in ("workflow_id", "number", "step", "state", "job_id", "due_at")))
ENDED = sa.select(jobs.c.id, jobs.c.state, jobs.c.error, jobs.c.finished_at, jobs.c.embed)
RESULT = sa.select(jobs.c.id, jobs.c.result, jobs.c.result_ref)

_MINE = sa.and_(
    steps.c.workflow_id == sa.bindparam("b_workflow_id"),
    steps.c.number == sa.bindparam("b_number"),
    steps.c.step == sa.bindparam("b_step"),
)
_SEEN = sa.bindparam("b_seen", type_=steps.c.due_at.type)
_DUE_AT = sa.bindparam("b_due_at", type_=steps.c.due_at.type)
_AS_SEEN = sa.or_(steps.c.due_at == _SEEN, sa.and_(steps.c.due_at.is_(None), _SEEN.is_(None)))

WRITE = (
    sa.update(steps)
    .where(_MINE)
    .values(
        # Unless it was told meanwhile that there is something to look at. First, as MySQL sets one column after the
        # other.
        due_at=sa.case((_AS_SEEN, _DUE_AT), else_=steps.c.due_at),
        **{
            name: sa.bindparam(f"b_{name}", type_=steps.c[name].type)
            for name in _HEAD
            if name not in ("step", "due_at")
        },
    )
)
WRITE_MEMBER = (
    sa.update(steps)
    .where(_MINE)
    .values(
        state=sa.bindparam("b_state", type_=steps.c.state.type),
        finished_at=sa.bindparam("b_finished_at", type_=steps.c.finished_at.type),
        due_at=sa.case((_AS_SEEN, _DUE_AT), else_=steps.c.due_at),
    )
)
WRITE_DUE = sa.update(steps).where(_MINE, steps.c.due_at == _SEEN).values(due_at=_DUE_AT)
_WORKFLOW = ("state", "ends_as", "finished_at", "error")
WRITE_WORKFLOW = (
    sa.update(workflows)
    .where(workflows.c.id == sa.bindparam("b_id"))
    .values({name: sa.bindparam(f"b_{name}", type_=workflows.c[name].type) for name in _WORKFLOW})
)
WRITE_OWN = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"))
    .values(
        state=State.SUCCEEDED,
        due_at=None,
        error=None,
        **{
            name: sa.bindparam(f"b_{name}", type_=jobs.c[name].type) for name in ("finished_at", "result", "result_ref")
        },
    )
)


def step_key(row: Any) -> dict[str, Any]:
    return {"b_workflow_id": row.workflow_id, "b_number": row.number, "b_step": row.step}


def head_row(run: Run, row: Row) -> dict[str, Any]:
    values = {f"b_{name}": getattr(row, name) for name in _HEAD}
    return values | {"b_workflow_id": run.id, "b_number": 0, "b_seen": row.seen_due_at}


def workflow_row(run: Run) -> dict[str, Any]:
    return {
        "b_id": run.id,
        "b_state": run.state,
        "b_ends_as": run.ends_as,
        "b_finished_at": datetime.now(UTC) if run.state.final else None,
        "b_error": run.error,
    }
