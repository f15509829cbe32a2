"""The workflows, and their steps."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import ID, NAME, metadata
from penstock.ledger.sql.types import LongerText, LongText, UtcDateTime

workflows = sa.Table(
    "penstock_workflows",
    metadata,
    # The id of its job: a workflow is a job that waits in the ledger until its last step has ended.
    sa.Column("id", ID, primary_key=True),
    sa.Column("kind", NAME, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("definition", sa.String(32), nullable=False),  # a hash of the graph
    sa.Column("graph", LongText, nullable=False),  # the graph that it started with, as JSON
    sa.Column("ends_as", sa.String(16)),  # its final state once its steps have stopped: failed or cancelled
    sa.Column("undo", sa.Boolean, nullable=False, default=True),  # whether compensations run first
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("error", LongerText),  # which step failed and why, or why the workflow rests
    sa.Index(None, "state", "id"),
    sa.Index(None, "kind", "id"),
)

steps = sa.Table(
    "penstock_steps",
    metadata,
    sa.Column("workflow_id", ID, primary_key=True),
    sa.Column(
        "number", sa.Integer, primary_key=True, autoincrement=False
    ),  # 0: the step itself; from 1: a job of its fan-out
    sa.Column("step", NAME, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("job_id", ID),
    sa.Column("members", sa.Integer),  # number of jobs of a fan-out; None for other steps
    sa.Column("done", sa.Integer, nullable=False, default=0),  # number of those that have ended
    sa.Column("failed", sa.Integer, nullable=False, default=0),  # number of those that failed
    sa.Column("due_at", UtcDateTime),  # when the dispatcher looks at it next, on the database's clock
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("error", LongerText),
    sa.Column("result", LongText),  # JSON object of a step that waits: the `answer`, or its `otherwise`
    sa.Index(None, "due_at"),
    sa.Index(None, "job_id"),
)
