"""Jobs and workflows that a job belongs to."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from penstock.ledger.queries.scope import EVERYTHING, Scope
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, steps, workflows

MOST = 100
"""Steps of a workflow that are listed."""


def related(database: Database, job_id: str, scope: Scope = EVERYTHING) -> dict[str, Any]:
    """The workflow whose step the job is (`workflow`, `step`), and the jobs of its own steps (`children`), if it is a
    workflow; jobs outside of the scope are left out."""

    def read_relatives(connection: sa.Connection) -> dict[str, Any]:
        relatives: dict[str, Any] = {"workflow": None, "step": None, "is_workflow": False, "children": []}
        own = connection.execute(sa.select(steps.c.workflow_id, steps.c.step).where(steps.c.job_id == job_id)).first()
        if own is not None and _is_within(connection, own.workflow_id, scope):
            relatives |= {"workflow": own.workflow_id, "step": own.step}
        relatives["is_workflow"] = (
            connection.execute(sa.select(workflows.c.id).where(workflows.c.id == job_id)).first() is not None
        )
        if relatives["is_workflow"]:
            select = sa.select(steps.c.step, steps.c.state, jobs.c.id, jobs.c.kind, jobs.c.queue, jobs.c.tenant)
            joined = select.join(jobs, jobs.c.id == steps.c.job_id).where(steps.c.workflow_id == job_id)
            rows = connection.execute(joined.order_by(steps.c.step).limit(MOST))
            relatives["children"] = [
                {"step": row.step, "state": row.state, "id": row.id, "kind": row.kind}
                for row in rows
                if scope.includes(row.kind, row.queue, row.tenant)
            ]
        return relatives

    return database.read(read_relatives)


def _is_within(connection: sa.Connection, job_id: str, scope: Scope) -> bool:
    select = sa.select(jobs.c.kind, jobs.c.queue, jobs.c.tenant).where(jobs.c.id == job_id)
    row = connection.execute(select).first()
    return row is not None and scope.includes(row.kind, row.queue, row.tenant)
