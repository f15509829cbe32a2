"""Entering a workflow in the ledger, and taking one up that has ended."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import steps, workflows
from penstock.ledger.workflows import resume
from penstock.ledger.workflows.rows import fresh_row
from penstock.schemas.workflows import WorkflowState
from penstock.workers.workflows.definition import Definition


def start(connection: sa.Connection, database: Database, workflow_id: str, definition: Definition) -> None:
    """Enter it; one that was entered before goes on, and one that failed or was cancelled is taken up."""
    row = {
        "id": workflow_id,
        "kind": definition.kind,
        "state": WorkflowState.RUNNING,
        "definition": definition.hash,
        "graph": definition.graph,
        "ends_as": None,
        "undo": True,
        "started_at": datetime.now(UTC),
        "finished_at": None,
        "error": None,
    }
    if connection.execute(database.insert_ignore(workflows), row).rowcount == 0:
        _take_up(connection, database, workflow_id, definition)
        return
    rows = [fresh_row(workflow_id, name) for name in (*definition.steps, *definition.compensations)]
    database.execute_many(connection, database.insert(steps), rows)
    # By the clock of the database. One row is enough to be looked at.
    first = (steps.c.workflow_id == workflow_id, steps.c.number == 0, steps.c.step == rows[0]["step"])
    connection.execute(sa.update(steps).where(*first).values(due_at=from_now()))


def _take_up(connection: sa.Connection, database: Database, workflow_id: str, definition: Definition) -> None:
    select = sa.select(workflows.c.state).where(workflows.c.id == workflow_id)
    match connection.execute(database.locked(select)).scalar_one():
        case WorkflowState.FAILED | WorkflowState.CANCELLED:
            resume.resume(connection, database, workflow_id)
        case WorkflowState.SUCCEEDED:  # somebody insists
            resume.restart(connection, database, workflow_id, definition)
