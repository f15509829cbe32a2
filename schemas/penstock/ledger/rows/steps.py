"""Telling the dispatcher that jobs of workflows have ended: with the outcome, in its transaction.

A step's row says when the dispatcher looks at it next. Where a job ends unheard, it looks all the same, only later.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import steps

MARK = "penstock_workflow"
"""In the `embed` of a step's job: the id of its workflow."""


def ended(connection: sa.Connection, database: Database, job_ids: Sequence[str]) -> None:
    """Let the dispatcher look at the steps whose jobs these are, at once."""
    if job_ids:
        mine = database.among(steps.c.job_id, job_ids)
        connection.execute(sa.update(steps).where(mine).values(due_at=from_now()))


def stopped(connection: sa.Connection, database: Database, job_ids: Sequence[str]) -> None:
    """The same of jobs that somebody stopped, which may be workflows themselves."""
    if job_ids:
        ended(connection, database, job_ids)
        mine = sa.and_(database.among(steps.c.workflow_id, job_ids), steps.c.number == 0)
        connection.execute(sa.update(steps).where(mine).values(due_at=from_now()))
