"""The progress of workflows, written for a batch of them in the transaction that holds their locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.ledger.workflows.read import STEP_COLUMNS
from penstock.ledger.workflows.rows import StepRow, fresh_row
from penstock.schemas.workflows import StepState, WorkflowState

_KEY = sa.and_(
    steps.c.workflow_id == sa.bindparam("b_workflow_id"),
    steps.c.number == sa.bindparam("b_number"),
    steps.c.step == sa.bindparam("b_step"),
)
_SEEN = sa.bindparam("b_seen", type_=steps.c.due_at.type)
_DUE_AT = sa.bindparam("b_due_at", type_=steps.c.due_at.type)
_IS_AS_SEEN = sa.or_(steps.c.due_at == _SEEN, sa.and_(steps.c.due_at.is_(None), _SEEN.is_(None)))
_NEW_DUE_AT = sa.case((_IS_AS_SEEN, _DUE_AT), else_=steps.c.due_at)
"""The new due time, unless an event has made the step due meanwhile."""


def _bound(table: sa.Table, names: Sequence[str]) -> dict[str, Any]:
    return {name: sa.bindparam(f"b_{name}", type_=table.c[name].type) for name in names}


_UPDATE_STEP = (
    sa.update(steps)
    .where(_KEY)
    .values(due_at=_NEW_DUE_AT, **_bound(steps, [name for name in STEP_COLUMNS if name not in ("step", "due_at")]))
)
_UPDATE_MEMBER = sa.update(steps).where(_KEY).values(**_bound(steps, ["state", "finished_at"]), due_at=_NEW_DUE_AT)
_UPDATE_DUE = sa.update(steps).where(_KEY, steps.c.due_at == _SEEN).values(due_at=_DUE_AT)
_UPDATE_WORKFLOW = (
    sa.update(workflows)
    .where(workflows.c.id == sa.bindparam("b_id"))
    .values(_bound(workflows, ("state", "ends_as", "finished_at", "error")))
)


@dataclass(slots=True)
class StepChanges:
    """Changes to the steps of a batch of workflows, collected and then written together."""

    _steps: list[dict[str, Any]] = field(default_factory=list)
    _members: list[dict[str, Any]] = field(default_factory=list)
    _postponed: list[dict[str, Any]] = field(default_factory=list)
    _new: list[dict[str, Any]] = field(default_factory=list)

    def update(self, workflow_id: str, row: StepRow) -> None:
        values = {f"b_{name}": getattr(row, name) for name in STEP_COLUMNS}
        self._steps.append(values | {"b_workflow_id": workflow_id, "b_number": 0, "b_seen": row.seen_due_at})

    def end_member(self, due: Any, state: StepState, finished_at: datetime | None) -> None:
        """End a job of a fan-out.

        Arguments:
            due: its row, as `due_steps` has read it.
        """
        change = {"b_state": state, "b_finished_at": finished_at, "b_due_at": None}
        self._members.append(_key(due) | change)

    def postpone(self, due: Any, due_at: datetime) -> None:
        """Postpone a due step."""
        self._postponed.append(_key(due) | {"b_due_at": due_at})

    def add_member(self, workflow_id: str, step: str, number: int, job_id: str, due_at: datetime) -> None:
        """Add a job of a fan-out."""
        sent = {"state": StepState.RUNNING, "job_id": job_id, "due_at": due_at}
        self._new.append(fresh_row(workflow_id, step, number) | sent)

    def write(self, connection: sa.Connection, database: Database) -> None:
        updates = (
            (_UPDATE_STEP, self._steps),
            (_UPDATE_MEMBER, self._members),
            (_UPDATE_DUE, self._postponed),
        )
        for statement, rows in updates:
            if rows:
                rows.sort(key=lambda row: (row["b_workflow_id"], row["b_number"], row["b_step"]))
                database.execute_many(connection, statement, rows)
        if self._new:
            database.execute_many(connection, database.insert(steps), self._new)


def _key(due: Any) -> dict[str, Any]:
    return {"b_workflow_id": due.workflow_id, "b_number": due.number, "b_step": due.step, "b_seen": due.due_at}


@dataclass(frozen=True, slots=True)
class WorkflowChange:
    """The new state of a workflow.

    Attributes:
        ends_as: the state it ends in when its compensations are done.
    """

    id: str
    state: WorkflowState
    ends_as: WorkflowState | None
    error: str | None


def update_workflows(connection: sa.Connection, database: Database, changes: Sequence[WorkflowChange]) -> None:
    if changes:
        rows = [
            {
                "b_id": change.id,
                "b_state": change.state,
                "b_ends_as": change.ends_as,
                "b_finished_at": datetime.now(UTC) if change.state.final else None,
                "b_error": storable(change.error, LONGEST_ERROR),
            }
            for change in changes
        ]
        database.execute_many(connection, _UPDATE_WORKFLOW, rows)


def postpone_workflow(connection: sa.Connection, workflow_id: str, now: datetime, delay: timedelta) -> None:
    """Postpone the due steps of a workflow."""
    due = sa.and_(steps.c.workflow_id == workflow_id, steps.c.due_at <= now)
    connection.execute(sa.update(steps).where(due).values(due_at=from_now(delay)))


def note_rest(connection: sa.Connection, workflow_id: str, error: str | None) -> None:
    """Record why a workflow rests, also with its own job; None: it goes on."""
    for table in (workflows, jobs):
        connection.execute(
            sa.update(table).where(table.c.id == workflow_id).values(error=storable(error, LONGEST_ERROR))
        )


def fail_without_job(connection: sa.Connection, workflow_id: str, error: str) -> None:
    """End a workflow whose own job is gone: none of its steps will start."""
    change = {"state": WorkflowState.FAILED, "finished_at": datetime.now(UTC), "error": storable(error, LONGEST_ERROR)}
    connection.execute(sa.update(workflows).where(workflows.c.id == workflow_id).values(**change))
    connection.execute(sa.update(steps).where(steps.c.workflow_id == workflow_id).values(due_at=None))
