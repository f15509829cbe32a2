"""Commands about schedules: add, remove, pause, resume, run now, backfill, show.

The rows of `penstock_schedules` fire, whatever wrote them. A command locks the row that it changes, so a dispatcher
sees it either before or after the change. Each command that changes one is in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError

from penstock.config.errors import ConfigError, InvalidState, ScheduleNotFound
from penstock.ledger.rows import audit
from penstock.ledger.schedules.rows import WAITS, due_at, first_time, row_of
from penstock.ledger.schedules.rules import Schedule, schedule_of_row, schedule_of_values
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.ledger.transitions.enqueue import enter as enter_jobs
from penstock.schemas.jobs.kind import registry
from penstock.schemas.wire.codec import explain

T = TypeVar("T")

BATCH = 500
MOST_BACKFILLED = 10_000


@dataclass(frozen=True, slots=True)
class BackfilledTime:
    """A time of a backfill.

    Attributes:
        job_id: the job that was made for it; None: there is none.
        skipped: why no job was made: `fired` (it has its job already), `unique` (`job_id` holds the key).
    """

    time: datetime
    job_id: str | None
    skipped: str | None


def recorded_schedules(database: Database) -> dict[str, Any]:
    """Name → row of each schedule in the ledger."""
    select = sa.select(schedules).order_by(schedules.c.name)
    return database.read(lambda connection: {row.name: row for row in connection.execute(select)})


def find(database: Database, name: str) -> Any:
    """The row of one schedule. Raises ScheduleNotFound."""
    return database.read(lambda connection: _row(connection, sa.select(schedules), name))


def runs(database: Database, name: str, limit: int = 10) -> list[Any]:
    """The last times of a schedule, the newest first, with the outcome of the job: `fire_at`, `cause`, `fired_at`,
    `skipped`, `job_id`, `state`, `started_at`, `finished_at`. The state is None where the ledger has no such job."""
    select = (
        sa.select(firings, jobs.c.state, jobs.c.started_at, jobs.c.finished_at)
        .select_from(firings.outerjoin(jobs, jobs.c.id == firings.c.job_id))
        .where(firings.c.schedule == name)
        .order_by(firings.c.fire_at.desc())
        .limit(limit)
    )
    return database.read(lambda connection: list(connection.execute(select)))


def add(database: Database, name: str, values: Mapping[str, Any], *, actor: str) -> Schedule:
    """Add a schedule, from the settings that the file would have. It fires from now on.

    Raises:
        ConfigError: it is wrong, or never fires; InvalidState: there is one of this name.
    """
    schedule = schedule_of_values(name, values)
    if schedule.error is not None:
        raise ConfigError(schedule.error)

    def insert_schedule(connection: sa.Connection) -> None:
        if connection.execute(sa.select(schedules.c.source).where(schedules.c.name == name)).first() is not None:
            raise InvalidState(f"there is a schedule {name!r} already; remove it first, or choose another name")
        next_at = first_time(schedule, _now(connection))
        if next_at is None:
            raise ConfigError(f"schedule {name!r}: its only time has passed")
        connection.execute(sa.insert(schedules), row_of(schedule, next_at))
        _log(connection, actor, "add", name, {"kind": schedule.settings and schedule.settings.kind})

    database.write(insert_schedule)
    return schedule


def remove(database: Database, name: str, *, actor: str) -> None:
    """Delete a schedule. The jobs it has made stay as they are.

    Raises:
        ScheduleNotFound; InvalidState: it is in penstock.toml, and would come back.
    """

    def delete_schedule(connection: sa.Connection, row: Any) -> None:
        if row.source == "file":
            raise InvalidState(f"schedule {name!r} stands in penstock.toml; remove it there, or pause it")
        connection.execute(sa.delete(schedules).where(schedules.c.name == name))
        _log(connection, actor, "remove", name)

    _change(database, name, delete_schedule)


def pause(database: Database, name: str, *, actor: str) -> None:
    """Let a schedule make no jobs until it is resumed. Raises ScheduleNotFound; InvalidState: it is paused."""

    def pause_schedule(connection: sa.Connection, row: Any) -> None:
        if row.paused_at is not None:
            raise InvalidState(f"schedule {name!r} is paused since {row.paused_at.isoformat()}")
        _update(connection, name, paused_at=_now(connection), due_at=None)
        _log(connection, actor, "pause", name)

    _change(database, name, pause_schedule)


def resume(database: Database, name: str, *, actor: str) -> datetime | None:
    """Let a paused schedule go on. It starts from now: the times that passed meanwhile make no jobs.

    Returns:
        Its next time.

    Raises:
        ScheduleNotFound; InvalidState: it is not paused.
    """

    def resume_schedule(connection: sa.Connection, row: Any) -> datetime | None:
        if row.paused_at is None:
            raise InvalidState(f"schedule {name!r} is not paused")
        schedule = schedule_of_row(row)
        next_at = None if schedule.times is None else schedule.times.next(_now(connection))
        _update(connection, name, paused_at=None, next_at=next_at, due_at=due_at(schedule, next_at))
        _log(connection, actor, "resume", name)
        return next_at

    return _change(database, name, resume_schedule)


def run(database: Database, name: str, *, actor: str) -> str:
    """Make a job of a schedule now, also if it is paused or its last job still runs. Its next time stays.

    Returns:
        The job's id; where the kind is unique and its key is held, the id of the job that holds it.

    Raises:
        ScheduleNotFound; ConfigError: the schedule is wrong, its kind is not imported here, or refuses the time.
    """

    def make_job(connection: sa.Connection, row: Any) -> str:
        now = _now(connection)
        [fired] = _make_jobs(connection, database, _good(row), [now], now, "run")
        _update(connection, name, last_job_id=fired.job_id)
        _log(connection, actor, "run", name, {"job": fired.job_id})
        assert fired.job_id is not None
        return fired.job_id

    return _change(database, name, make_job)


def backfill(
    database: Database,
    name: str,
    begin: datetime,
    end: datetime | None = None,
    *,
    actor: str,
    limit: int = MOST_BACKFILLED,
    dry_run: bool = False,
) -> list[BackfilledTime]:
    """Make a job for each time of a schedule that has none, from `begin` to before `end`, or to now.

    The jobs are made at once, `BATCH` a transaction, and may run at the same time, whatever `overlap` says. A second
    call, after a crash or by mistake, makes only what is missing.

    Raises:
        ScheduleNotFound; ConfigError: the schedule is wrong, its kind is not imported here or refuses a time, the span
            is empty or ends in the future, or has more than `limit` times.
    """
    row = find(database, name)
    schedule = _good(row)
    now = database.read(_now)
    end = end or now
    if end > now:
        raise ConfigError(f"{end.isoformat()} has not come yet; what is to come fires by itself")
    if begin >= end:
        raise ConfigError(f"{begin.isoformat()} is not before {end.isoformat()}")
    assert schedule.times is not None
    most, instant = limit + 1, timedelta(microseconds=1)
    times = schedule.times.until(begin - instant, end - instant, most)
    if len(times) > limit:
        raise ConfigError(f"schedule {name!r} has more than {limit:,} times in that span; choose a shorter one")
    results: list[BackfilledTime] = []
    for start in range(0, len(times), BATCH):
        batch = times[start : start + BATCH]

        def backfill_batch(connection: sa.Connection, row: Any, batch: list[datetime] = batch) -> list[BackfilledTime]:
            if dry_run:
                fired = _fired(connection, name, batch)
                return [BackfilledTime(time, fired.get(time), "fired" if time in fired else None) for time in batch]
            return _make_jobs(connection, database, _good(row), batch, _now(connection), "backfill")

        results += _change(database, name, backfill_batch)
    if not dry_run:
        count = sum(result.skipped is None for result in results)
        detail = {"from": begin, "to": end}
        database.write(lambda connection: _log(connection, actor, "backfill", name, detail, count))
    return results


def _make_jobs(
    connection: sa.Connection,
    database: Database,
    schedule: Schedule,
    times: list[datetime],
    now: datetime,
    cause: str,
) -> list[BackfilledTime]:
    """Make the jobs of times that have none. The schedule's row is locked."""
    fired = _fired(connection, schedule.name, times)
    missing = [time for time in times if time not in fired]
    try:
        envelopes = [schedule.envelope(now, time) for time in missing]
    except ValidationError as error:
        reason = explain(error, kind=None if schedule.settings is None else registry.find(schedule.settings.kind))
        raise ConfigError(f"schedule {schedule.name!r}: its kind refuses that time: {reason}") from None
    admissions = dict(zip(missing, enter_jobs(connection, database, envelopes, now), strict=True)) if missing else {}
    results = []
    for time in times:
        if (admission := admissions.get(time)) is None:
            results.append(BackfilledTime(time, fired[time], "fired"))
        else:
            results.append(BackfilledTime(time, admission.job_id, None if admission.created else "unique"))
    rows = [
        {
            "schedule": schedule.name,
            "fire_at": result.time,
            "cause": cause,
            "job_id": result.job_id,
            "fired_at": now,
            "skipped": result.skipped,
        }
        for result in results
        if result.time in admissions
    ]
    if rows:
        connection.execute(database.upsert(firings), rows)
    return results


def _fired(connection: sa.Connection, name: str, times: list[datetime]) -> dict[datetime, str | None]:
    """Time → its job; None if that job waits for the last one to end. Times without a job are left out."""
    has_job = sa.or_(firings.c.job_id.is_not(None), firings.c.skipped == WAITS)
    between = firings.c.fire_at.between(times[0], times[-1])
    select = sa.select(firings.c.fire_at, firings.c.job_id).where(firings.c.schedule == name, between, has_job)
    among = set(times)
    return {row.fire_at: row.job_id for row in connection.execute(select) if row.fire_at in among}


def _good(row: Any) -> Schedule:
    schedule = schedule_of_row(row)
    if schedule.error is not None:
        raise ConfigError(schedule.error)
    return schedule


def _change(database: Database, name: str, change: Callable[[sa.Connection, Any], T]) -> T:
    """Run a change in a transaction that locks the schedule's row."""
    select = database.locked(sa.select(schedules))
    return database.write(lambda connection: change(connection, _row(connection, select, name)))


def _row(connection: sa.Connection, select: sa.Select[Any], name: str) -> Any:
    row = connection.execute(select.where(schedules.c.name == name)).first()
    if row is None:
        raise ScheduleNotFound(f"no schedule {name!r}; see: penstock schedules list")
    return row


def _update(connection: sa.Connection, name: str, **values: Any) -> None:
    connection.execute(sa.update(schedules).where(schedules.c.name == name).values(**values))


def _now(connection: sa.Connection) -> datetime:
    now: datetime = connection.execute(sa.select(from_now())).scalar_one()
    return now


def _log(
    connection: sa.Connection,
    actor: str,
    act: str,
    name: str,
    detail: Mapping[str, Any] | None = None,
    count: int = 1,
) -> None:
    audit.write(
        connection, actor=actor, act=act, subject_kind="schedule", subject=name, count=count, detail=detail or {}
    )
