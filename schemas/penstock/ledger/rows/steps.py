"""Steps of workflows whose jobs have ended: their rows say when the dispatcher looks at them next.

The dispatcher looks at every step now and then, too, so that a job whose end was missed only costs time.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import steps, workflows

MARK = "penstock_workflow"
"""In the `embed` of a step's job: the id of its workflow."""


RESTS = "rests: "
"""Begins the error of a workflow that rests: no dispatcher that has looked at it can read it."""


def is_under_way(job_id: sa.Column[str]) -> sa.ColumnElement[bool]:
    """Condition: this job is a workflow that has not ended."""
    return sa.exists().where(workflows.c.id == job_id, workflows.c.finished_at.is_(None))


RESTING = sa.and_(workflows.c.finished_at.is_(None), workflows.c.error.startswith(RESTS))
"""Condition: this workflow rests."""


def is_resting(job_id: sa.Column[str]) -> sa.ColumnElement[bool]:
    """Condition: this job is a workflow that rests."""
    return sa.exists().where(workflows.c.id == job_id, RESTING)


def wake_steps_of(connection: sa.Connection, database: Database, job_ids: Sequence[str]) -> None:
    """Let the dispatcher look at once at the steps that these jobs belong to."""
    if job_ids:
        where = database.among(steps.c.job_id, job_ids)
        connection.execute(sa.update(steps).where(where).values(due_at=from_now()))


def wake_workflows(connection: sa.Connection, database: Database, workflow_ids: Sequence[str]) -> None:
    """Let the dispatcher look at once at these workflows, except those that have ended."""
    if workflow_ids:
        under_way = sa.select(workflows.c.id).where(
            database.among(workflows.c.id, workflow_ids), workflows.c.finished_at.is_(None)
        )
        where = sa.and_(steps.c.workflow_id.in_(under_way), steps.c.number == 0)
        connection.execute(sa.update(steps).where(where).values(due_at=from_now()))
