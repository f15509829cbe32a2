"""The attempts of jobs, as people see them.

What almost every job comes to, an attempt that succeeds, is not written a second time: the job's own row says all of it
until the job is tried again.
"""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.tables import attempts, jobs
from penstock.schemas.states import Outcome, State

_SUCCESSES = sa.select(
    jobs.c.id,
    jobs.c.fence,
    jobs.c.attempt,
    sa.func.coalesce(jobs.c.worker, ""),
    jobs.c.started_at,
    jobs.c.finished_at,
    sa.literal(Outcome.SUCCEEDED.value),
    sa.null(),
    sa.null(),
).where(jobs.c.state == State.SUCCEEDED)

history = sa.union_all(sa.select(attempts), _SUCCESSES).subquery("history")
"""All attempts, with the columns of the table of attempts."""


def keep_success(connection: sa.Connection, job_id: str) -> None:
    """Enter the attempt of a job that succeeded, whose row is about to change."""
    connection.execute(sa.insert(attempts).from_select(list(attempts.c), _SUCCESSES.where(jobs.c.id == job_id)))
