"""The ledger's schedules brought in line with those of penstock.toml and of the code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.schedules.rows import first_time, row_of
from penstock.ledger.schedules.rules import Schedule, is_name, schedule_of_row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import schedules
from penstock.schemas.schedules.decorator import sources

log = logging.getLogger("penstock.dispatcher")

_BATCH = 500
_TIMING = ("cron", "every", "anchor", "at", "times", "start", "until", "timezone", "calendar", "closed")
_KEPT = ("last_at", "last_job_id", "waiting_at", "paused_at")


def declare_schedules(database: Database, declared: Sequence[Schedule]) -> None:
    """Make the ledger's schedules those of the file and the code; schedules added at run time stay.

    A schedule whose timing has not changed keeps its next time, so that times which passed while no dispatcher was up
    count as missed. A new or changed one starts from now. A paused one stays paused. A schedule of the code is deleted
    when a dispatcher that imports its module does not find it there any more.
    """
    for schedule in declared:
        if schedule.error is not None:
            log.error("%s; it does not fire, the others do", schedule.error)
    declared = [schedule for schedule in declared if is_name(schedule.name)]
    select = sa.select(schedules).order_by(schedules.c.name)

    def update_schedules(connection: sa.Connection) -> None:
        removed, changed = _differences(connection, database.locked(select), declared)
        for start in range(0, len(removed), _BATCH):
            connection.execute(sa.delete(schedules).where(schedules.c.name.in_(removed[start : start + _BATCH])))
        if changed:
            connection.execute(database.upsert(schedules, keep=_KEPT), changed)

    # Compared without locks first: a dispatcher that starts mostly finds nothing to change.
    if any(database.read(lambda connection: _differences(connection, select, declared))):
        database.write(update_schedules)


def _differences(
    connection: sa.Connection, select: sa.Select[Any], declared: Sequence[Schedule]
) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of rows to delete, and the rows that are new or changed."""
    now: datetime = connection.execute(sa.select(from_now())).scalar_one()
    rows = {row.name: row for row in connection.execute(select)}
    names = {schedule.name for schedule in declared}
    removed = [row.name for row in rows.values() if row.name not in names and _is_ours(row)]
    changed = [_changed_row(schedule, rows.get(schedule.name), now) for schedule in declared]
    return removed, [row for row in changed if row is not None]


def _is_ours(row: Any) -> bool:
    """Whether a row without a declaration was removed, rather than declared in code that is not imported here."""
    return row.source == "file" or (row.source == "code" and (row.module in sys.modules or row.module in sources))


def _changed_row(schedule: Schedule, row: Any, now: datetime) -> dict[str, Any] | None:
    """The row that a schedule must have; None: it has that row already."""
    if row is None:
        return row_of(schedule, first_time(schedule, now))
    # Also where its rule is wrong here: another dispatcher may have imported what this one lacks, and fire it.
    has_next = row.next_at is not None and schedule.times is not None
    if has_next and (row.rule == schedule.rule or _timing(schedule_of_row(row)) == _timing(schedule)):
        new = row_of(schedule, row.next_at)
    else:
        new = row_of(schedule, first_time(schedule, now, row.last_at))
    if row.paused_at is not None:
        new["due_at"] = None
    return None if all(getattr(row, name) == value for name, value in new.items()) else new


def _timing(schedule: Schedule) -> list[Any]:
    return [getattr(schedule.settings, name, None) for name in _TIMING]
