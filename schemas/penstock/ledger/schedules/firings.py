"""Jobs of schedules, for those who follow them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, schedules
from penstock.schemas.states import FINAL


def recent_firings(database: Database, since: timedelta, limit: int) -> list[tuple[str, str]]:
    """Name of each schedule whose last job has not ended, or has done so within that time, and that job's id."""
    both = schedules.join(jobs, jobs.c.id == schedules.c.last_job_id)
    recent = sa.or_(jobs.c.state.not_in(sorted(FINAL)), jobs.c.finished_at > from_now(-since))
    select = sa.select(schedules.c.name, jobs.c.id).select_from(both).where(recent)
    rows = database.read(lambda connection: connection.execute(select.limit(limit)).all())
    return [(row.name, row.id) for row in rows]


def schedule_rows(database: Database, names: Sequence[str]) -> Sequence[Any]:
    """The rows of these schedules."""
    select = sa.select(schedules).where(database.among(schedules.c.name, names))
    return database.read(lambda connection: connection.execute(select).all())


def job_times(database: Database, ids: Sequence[str]) -> Sequence[Any]:
    """`id`, `state`, `started_at` and `finished_at` of these jobs, as far as they are on record."""
    columns = [jobs.c[name] for name in ("id", "state", "started_at", "finished_at")]
    select = sa.select(*columns).where(database.among(jobs.c.id, ids))
    return database.read(lambda connection: connection.execute(select).all())
