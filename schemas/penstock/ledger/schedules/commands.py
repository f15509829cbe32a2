"""What people do with schedules, whoever asks for it: add, remove, pause, resume, run now, backfill, look.

The rows of `penstock_schedules` are what fires, wherever they came from. Whoever changes one locks it, so that a
dispatcher is either before or after the change; each act is in the audit log.
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
from penstock.ledger.schedules.rules import Schedule, of_row, read
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.ledger.transitions.enqueue import enter as enter_jobs
from penstock.schemas.wire.codec import explain

T = TypeVar("T")

BATCH = 500
MOST_BACKFILLED = 10_000


@dataclass(frozen=True, slots=True)
class Backfilled:
    """One time of a backfill.

    Attributes:
        job_id: of the job that was made for it; None if none was.
        skipped: why none was made: `fired` (it has its job already), `unique` (the key is held by `job_id`).
    """

    time: datetime
    job_id: str | None
    skipped: str | None


def recorded(database: Database) -> dict[str, Any]:
    """The ledger's row of each schedule, by name."""
    select = sa.select(schedules).order_by(schedules.c.name)
    return database.read(lambda connection: {row.name: row for row in connection.execute(select)})


def find(database: Database, name: str) -> Any:
    """The row of one schedule. Raises ScheduleNotFound."""
    return database.read(lambda connection: _row(connection, sa.select(schedules), name))


def runs(database: Database, name: str, limit: int = 10) -> list[Any]:
    """The last times of a schedule, the newest first, with what became of the job: `fire_at`, `cause`, `fired_at`,
    `skipped`, `job_id`, `state`, `started_at`, `finished_at`. The state is None where the ledger has not the job."""
    select = (
        sa.select(firings, jobs.c.state, jobs.c.started_at, jobs.c.finished_at)
        .select_from(firings.outerjoin(jobs, jobs.c.id == firings.c.job_id))
        .where(firings.c.schedule == name)
        .order_by(firings.c.fire_at.desc())
        .limit(limit)
    )
    return database.read(lambda connection: list(connection.execute(select)))


def add(database: Database, name: str, values: Mapping[str, Any], *, actor: str) -> Schedule:
    """Make a schedule, of the settings that the file would have. It fires from now on.

    Raises:
        ConfigError: it is wrong, or never fires; InvalidState: there is one of this name.
    """
    schedule = read(name, values)
    if schedule.error is not None:
        raise ConfigError(schedule.error)

    def write(connection: sa.Connection) -> None:
        if connection.execute(sa.select(schedules.c.source).where(schedules.c.name == name)).first() is not None:
            raise InvalidState(f"there is a schedule {name!r} already; remove it first, or choose another name")
        next_at = first_time(schedule, _now(connection))
        if next_at is None:
            raise ConfigError(f"schedule {name!r}: its only time has passed")
        connection.execute(sa.insert(schedules), row_of(schedule, next_at))
        _log(connection, actor, "add", name, {"kind": schedule.settings and schedule.settings.kind})

    database.write(write)
    return schedule


def remove(database: Database, name: str, *, actor: str) -> None:
    """Delete a schedule. The jobs it has made stay as they are.

    Raises:
        ScheduleNotFound; InvalidState: it stands in penstock.toml, and would come back.
    """

    def act(connection: sa.Connection, row: Any) -> None:
        if row.source == "file":
            raise InvalidState(f"schedule {name!r} stands in penstock.toml; remove it there, or pause it")
        connection.execute(sa.delete(schedules).where(schedules.c.name == name))
        _log(connection, actor, "remove", name)

    _change(database, name, act)


def pause(database: Database, name: str, *, actor: str) -> None:
    """Let a schedule make no jobs until it is resumed. Raises ScheduleNotFound; InvalidState: it is paused."""

    def act(connection: sa.Connection, row: Any) -> None:
        if row.paused_at is not None:
            raise InvalidState(f"schedule {name!r} is paused since {row.paused_at.isoformat()}")
        _update(connection, name, paused_at=_now(connection), due_at=None)
        _log(connection, actor, "pause", name)

    _change(database, name, act)


def resume(database: Database, name: str, *, actor: str) -> datetime | None:
    """Let a paused schedule go on: from now, so that what it would have done meanwhile is not made up for.

    Returns:
        Its next time.

    Raises:
        ScheduleNotFound; InvalidState: it is not paused.
    """

    def act(connection: sa.Connection, row: Any) -> datetime | None:
        if row.paused_at is None:
            raise InvalidState(f"schedule {name!r} is not paused")
        schedule = of_row(row)
        next_at = None if schedule.times is None else schedule.times.next(_now(connection))
        _update(connection, name, paused_at=None, next_at=next_at, due_at=due_at(schedule, next_at))
        _log(connection, actor, "resume", name)
        return next_at

    return _change(database, name, act)


def run(database: Database, name: str, *, actor: str) -> str:
    """Make a job of a schedule now, paused or not, whatever its last one does. Its next time stays.

    Returns:
        The job's id; of a unique kind whose key is held, that of the job that holds it.

    Raises:
        ScheduleNotFound; ConfigError: the schedule is wrong, its kind is not imported here, or refuses the time.
    """

    def act(connection: sa.Connection, row: Any) -> str:
        now = _now(connection)
        [made] = _make(connection, database, _good(row), [now], now, "run")
        _update(connection, name, last_job_id=made.job_id)
        _log(connection, actor, "run", name, {"job": made.job_id})
        assert made.job_id is not None
        return made.job_id

    return _change(database, name, act)


def backfill(
    database: Database,
    name: str,
    begin: datetime,
    end: datetime | None = None,
    *,
    actor: str,
    limit: int = MOST_BACKFILLED,
    dry_run: bool = False,
) -> list[Backfilled]:
    """Make a job for each time of a schedule from `begin` to before `end`, or now, that has none.

    They are made at once, `BATCH` a transaction, and may run beside each other whatever `overlap` says. Doing it again,
    after a crash or by mistake, makes only what is missing.

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
    made: list[Backfilled] = []
    for start in range(0, len(times), BATCH):
        batch = times[start : start + BATCH]

        def act(connection: sa.Connection, row: Any, batch: list[datetime] = batch) -> list[Backfilled]:
            if dry_run:
                done = _fired(connection, name, batch)
                return [Backfilled(time, done.get(time), "fired" if time in done else None) for time in batch]
            return _make(connection, database, _good(row), batch, _now(connection), "backfill")

        made += _change(database, name, act)
    if not dry_run:
        count = sum(one.skipped is None for one in made)
        detail = {"from": begin, "to": end}
        database.write(lambda connection: _log(connection, actor, "backfill", name, detail, count))
    return made


def first_time(schedule: Schedule, now: datetime) -> datetime | None:
    """When a schedule that starts now fires first; a wrong one never does."""
    return None if schedule.times is None or schedule.error is not None else schedule.times.next(now)


def row_of(schedule: Schedule, next_at: datetime | None) -> dict[str, Any]:
    """The row of a schedule, but for what has happened to it."""
    return {
        "name": schedule.name,
        "source": schedule.source,
        "module": schedule.module,
        "rule": schedule.rule,
        "next_at": next_at,
        "due_at": due_at(schedule, next_at),
        "error": schedule.error,
    }


def due_at(schedule: Schedule, next_at: datetime | None) -> datetime | None:
    """When a dispatcher is to look at it."""
    return None if next_at is None else next_at + schedule.offset


def _make(
    connection: sa.Connection,
    database: Database,
    schedule: Schedule,
    times: list[datetime],
    now: datetime,
    cause: str,
) -> list[Backfilled]:
    """Make the jobs of times that have none. The schedule's row is locked."""
    done = _fired(connection, schedule.name, times)
    wanted = [time for time in times if time not in done]
    try:
        envelopes = [schedule.envelope(now, time) for time in wanted]
    except ValidationError as error:
        raise ConfigError(f"schedule {schedule.name!r}: its kind refuses that time: {explain(error)}") from None
    made = dict(zip(wanted, enter_jobs(connection, database, envelopes, now), strict=True)) if wanted else {}
    answers = []
    for time in times:
        if time not in made:
            answers.append(Backfilled(time, done[time], "fired"))
        else:
            answers.append(Backfilled(time, made[time].job_id, None if made[time].created else "unique"))
    rows = [
        {
            "schedule": schedule.name,
            "fire_at": one.time,
            "cause": cause,
            "job_id": one.job_id,
            "fired_at": now,
            "skipped": one.skipped,
        }
        for one in answers
        if one.time in made
    ]
    if rows:
        connection.execute(database.upsert(firings), rows)
    return answers


def _fired(connection: sa.Connection, name: str, times: list[datetime]) -> dict[datetime, str | None]:
    """Those of the times that have a job, or whose job waits for the last one to end."""
    has_job = sa.or_(firings.c.job_id.is_not(None), firings.c.skipped == WAITS)
    between = firings.c.fire_at.between(times[0], times[-1])
    select = sa.select(firings.c.fire_at, firings.c.job_id).where(firings.c.schedule == name, between, has_job)
    wanted = set(times)
    return {row.fire_at: row.job_id for row in connection.execute(select) if row.fire_at in wanted}


WAITS = "waits"
"""`skipped` of a time whose job is made when the last one has ended."""


def _good(row: Any) -> Schedule:
    schedule = of_row(row)
    if schedule.error is not None:
        raise ConfigError(schedule.error)
    return schedule


def _change(database: Database, name: str, act: Callable[[sa.Connection, Any], T]) -> T:
    """Do something to a schedule whose row is locked meanwhile."""
    select = database.locked(sa.select(schedules))
    return database.write(lambda connection: act(connection, _row(connection, select, name)))


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
