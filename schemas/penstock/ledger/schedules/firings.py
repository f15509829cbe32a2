"""Jobs of schedules, for those who follow them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.schedules.rows import WAITS
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
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


def last_times(database: Database, module: str, since: datetime) -> dict[str, datetime]:
    """Name → its last time that fired, of schedules of the code.

    Arguments:
        module: the one that declares them.
        since: only times from then on.
    """
    where = schedules.c.source == "code", schedules.c.module == module, schedules.c.last_at >= since
    select = sa.select(schedules.c.name, schedules.c.last_at).where(*where)
    return database.read(lambda connection: {row.name: row.last_at for row in connection.execute(select)})


def job_times(database: Database, ids: Sequence[str]) -> Sequence[Any]:
    """`id`, `state`, `started_at` and `finished_at` of these jobs, as far as they are on record."""
    columns = [jobs.c[name] for name in ("id", "state", "started_at", "finished_at")]
    select = sa.select(*columns).where(database.among(jobs.c.id, ids))
    return database.read(lambda connection: connection.execute(select).all())


def missed_times(database: Database, window: timedelta, limit: int) -> dict[str, int]:
    """Name of a schedule → its times within the window that made no job, because the last one ran, no dispatcher did,
    and the like.

    Arguments:
        limit: schedules that are read, those that fired last.
    """

    def count(connection: sa.Connection) -> dict[str, int]:
        since = connection.execute(sa.select(from_now(-window))).scalar_one()
        lately = sa.select(schedules.c.name).where(schedules.c.last_at >= since)
        names = list(connection.scalars(lately.order_by(schedules.c.last_at.desc()).limit(limit)))
        missed = firings.c.fire_at >= since, firings.c.skipped.is_not(None), firings.c.skipped != WAITS
        where = database.among(firings.c.schedule, names), firings.c.cause == "time", *missed
        select = sa.select(firings.c.schedule, sa.func.count()).where(*where).group_by(firings.c.schedule)
        return {row[0]: row[1] for row in connection.execute(select)} if names else {}

    return database.read(count)
