"""Runs of suspects in processes of their own. A worker that dies meanwhile was killed by one of its other jobs.

A row here counts as long as its job has the fence in this row: a job that was claimed meanwhile begins again. An
untracked job has no fence, and the number of its deliveries takes its place: the broker's count of them is all that
shows its crashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import suspect_runs as runs

MOST_DEATHS = 10
"""Deaths of its workers that do not count against a job. It may cause them even from there: by its memory, say."""


def begin(connection: sa.Connection, database: Database, fences: Mapping[str, int]) -> None:
    """Record that claimed jobs wait for, or run in, a process of their own; in the transaction that claims them.

    Arguments:
        fences: by the job's id.
    """
    rows = [{"job_id": job_id, "fence": fence, "deaths": 0} for job_id, fence in fences.items()]
    database.execute_many(connection, database.upsert(runs, keep=("deaths",)), rows)


def end(database: Database, job_id: str, fence: int) -> None:
    """Record that the claimed job runs with the others after all, or, of an untracked one, that it has ended.

    Raises:
        LedgerUnavailable: it still counts as apart.
    """
    run = runs.c.job_id == job_id, sa.true() if fence == 0 else runs.c.fence == fence
    database.write(lambda connection: connection.execute(sa.delete(runs).where(*run)))


def spare(connection: sa.Connection, row: Any) -> bool:
    """Whether the death of a job's worker does not count against the job. It is spared `MOST_DEATHS` times.

    Arguments:
        row: the job's, as the dead worker had claimed it.
    """
    if not row.crashes:
        return False
    run = runs.c.job_id == row.id, runs.c.fence == row.fence, runs.c.deaths < MOST_DEATHS
    return connection.execute(sa.update(runs).where(*run).values(deaths=runs.c.deaths + 1)).rowcount > 0


def begin_untracked(database: Database, job_id: str, deliveries: int) -> int:
    """Record that an untracked job waits for, or runs in, a process of its own.

    Returns the deaths of its workers that do not count against it, `MOST_DEATHS` at most.

    Arguments:
        deliveries: its number, with the one of now. The same again counts the same.

    Raises:
        LedgerUnavailable: ask again.
    """
    run = runs.c.job_id == job_id, runs.c.fence < deliveries, runs.c.deaths < MOST_DEATHS

    def record(connection: sa.Connection) -> int:
        connection.execute(sa.update(runs).where(*run).values(deaths=runs.c.deaths + 1, fence=deliveries))
        row = {"job_id": job_id, "fence": deliveries, "deaths": 0}
        connection.execute(database.insert_ignore(runs), [row])
        return connection.scalar(sa.select(runs.c.deaths).where(runs.c.job_id == job_id)) or 0

    return database.write(record)
