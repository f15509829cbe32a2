"""Schedules for tests, and their firings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.settings import ScheduleSettings, Settings
from penstock.ledger.schedules.firing import fire
from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.workers.dispatcher.schedules.declarations import read_schedules

HOURLY = {"kind": "ledger.note", "cron": "0 * * * *", "payload": {"text": "tick"}}


def rules(**definitions: dict[str, Any]) -> list[Schedule]:
    schedules = {name: ScheduleSettings(**definition) for name, definition in definitions.items()}
    return read_schedules(Settings(schedules=schedules))


def overdue(ledger: Database, name: str, **ago: float) -> datetime:
    """Put a schedule's next time into the past, to a full hour, and return it."""
    now = datetime.now(UTC) - timedelta(milliseconds=10)  # SQLite's clock is cut to milliseconds
    time = (now - timedelta(**ago)).replace(minute=0, second=0, microsecond=0) if ago else now
    change = sa.update(schedules).where(schedules.c.name == name).values(next_at=time, due_at=time)
    ledger.write(lambda connection: connection.execute(change))
    return time


def fired(ledger: Database) -> list[Any]:
    return ledger.read(lambda connection: list(connection.execute(sa.select(firings).order_by(firings.c.fire_at))))


def job_ids(ledger: Database) -> list[str]:
    return ledger.read(lambda connection: list(connection.scalars(sa.select(jobs.c.id).order_by(jobs.c.id))))


def full_hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def tick(ledger: Database, rule: Schedule) -> Any:
    """Let a time of a schedule come; returns its firing."""
    time = overdue(ledger, rule.name)
    fire(ledger, rule)
    return next(entry for entry in fired(ledger) if entry.fire_at == time)
