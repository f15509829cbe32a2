"""The end of a job: the one place that every transition to a final state goes through.

- Its *workflow* is notified: the dispatcher looks at once at the step that the job belongs to, and at the workflow
  that the job itself is.
- Its *key* and its turn at a *limit* are free with the state alone: `enqueue` asks for the state of the job that holds
  a key, and a row of `limit_waits` counts only while its job waits untouched.
- It is *counted*, where no attempt of a worker is: a worker counts its own (`rates.counting`).
- Those who *wait* for it read its row. A worker also publishes a change notification for them, after the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows import steps
from penstock.ledger.rows.jobs import Row
from penstock.ledger.rows.rates.counting import count_ends
from penstock.ledger.sql.database import Database
from penstock.schemas.states import Outcome, State


def final_columns(state: State, now: datetime, **columns: Any) -> Row:
    """Columns of a job that ends in this state."""
    return {"state": state, "finished_at": now, "due_at": None, **columns}


def announce_ends(
    connection: sa.Connection, database: Database, job_ids: Sequence[str], *, workflows: bool = True
) -> None:
    """Announce that these jobs have ended. Call it in the transaction that ends them, whatever the reason.

    Arguments:
        workflows: whether one of them may be a workflow that is under way. The job of an attempt is not: it is parked
            from the moment the workflow is under way.
    """
    steps.wake_steps_of(connection, database, job_ids)
    if workflows:
        steps.wake_workflows(connection, database, job_ids)


def count_rows(connection: sa.Connection, outcome: Outcome, rows: Iterable[Any]) -> None:
    """Count ends of these jobs, which have a `kind` and a `queue`."""
    count_ends(connection, outcome, Counter((row.kind, row.queue) for row in rows))
