"""Rows of the table of schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.text import LONGEST_ERROR, storable

WAITS = "waits"
"""`skipped` of a firing whose job is made when the last job has ended."""


def row_of(schedule: Schedule, next_at: datetime | None) -> dict[str, Any]:
    """Schedule → its row, without what has happened to it since."""
    return {
        "name": schedule.name,
        "source": schedule.source,
        "module": schedule.module,
        "rule": schedule.rule,
        "next_at": next_at,
        "due_at": due_at(schedule, next_at),
        "error": storable(schedule.error, LONGEST_ERROR),
    }


def first_time(schedule: Schedule, now: datetime, last: datetime | None = None) -> datetime | None:
    """The first time of a schedule that starts now; None: it is wrong, or never fires.

    Arguments:
        last: the last time that fired under its name; None: none did.
    """
    return None if schedule.times is None or schedule.error is not None else schedule.times.first(now, last)


def due_at(schedule: Schedule, next_at: datetime | None) -> datetime | None:
    """When a dispatcher must look at a schedule with this next time."""
    return None if next_at is None else next_at + schedule.offset
