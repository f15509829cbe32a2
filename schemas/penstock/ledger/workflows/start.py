"""Start of a workflow: insert its rows, or try one again that has ended."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import steps, workflows
from penstock.ledger.workflows import resume
from penstock.ledger.workflows.rows import fresh_row
from penstock.schemas.workflows import WorkflowOutline, WorkflowState


def start_workflow(connection: sa.Connection, database: Database, workflow_id: str, outline: WorkflowOutline) -> None:
    """Insert a workflow with its steps. A recorded one goes on if it is running, is resumed if it failed or was
    cancelled, and starts again if it succeeded."""
    row = {
        "id": workflow_id,
        "kind": outline.kind,
        "state": WorkflowState.RUNNING,
        "definition": outline.hash,
        "graph": outline.graph,
        "ends_as": None,
        "undo": True,
        "started_at": datetime.now(UTC),
        "finished_at": None,
        "error": None,
    }
    if connection.execute(database.insert_ignore(workflows), row).rowcount == 0:
        _start_again(connection, database, workflow_id, outline)
        return
    rows = [fresh_row(workflow_id, name) for name in (*outline.steps, *outline.compensations)]
    database.execute_many(connection, database.insert(steps), rows)
    # By the clock of the database. One due row is enough for the dispatcher to look.
    first = (steps.c.workflow_id == workflow_id, steps.c.number == 0, steps.c.step == rows[0]["step"])
    connection.execute(sa.update(steps).where(*first).values(due_at=from_now()))


def _start_again(connection: sa.Connection, database: Database, workflow_id: str, outline: WorkflowOutline) -> None:
    select = sa.select(workflows.c.state).where(workflows.c.id == workflow_id)
    match connection.execute(database.locked(select)).scalar_one():
        case WorkflowState.FAILED | WorkflowState.CANCELLED:
            resume.resume(connection, database, workflow_id)
        case WorkflowState.SUCCEEDED:  # its job was tried again on purpose
            resume.restart(connection, database, workflow_id, outline)
