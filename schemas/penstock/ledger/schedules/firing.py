"""Firing: which times of a schedule make a job, and the record of both in one transaction.

`penstock_firings` has a unique key of schedule and time. Dispatchers that look at the same time skip each other's rows.
Should two get past that, the key stops the second, whose transaction then runs again and finds the rows of the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.rows.steps import is_resting
from penstock.ledger.schedules.rows import WAITS, due_at
from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.ledger.transitions.cancel import cancel_in
from penstock.ledger.transitions.enqueue import enter as enter_jobs
from penstock.schemas.jobs.kind import registry
from penstock.schemas.schedules.times import MOST_AT_ONCE
from penstock.schemas.states import FINAL, State
from penstock.schemas.wire.codec import Envelope, explain

log = logging.getLogger("penstock.dispatcher")

Stamp = Callable[[str, Envelope], None]
"""Gets the name of a schedule and a job of it that is about to be written, to put the job into a trace."""

Fired = Callable[[str, str], None]
"""Called with a schedule's name and the id of a job that it has made, once that is committed."""

BATCH = 500
"""Schedules fired in one transaction."""
_MOST_TIMES = 2 * MOST_AT_ONCE
"""About how many of their times one transaction takes, if many were missed."""

_ADVANCE = (
    sa.update(schedules)
    .where(schedules.c.name == sa.bindparam("b_name"))
    .values(
        {
            name: sa.bindparam(f"b_{name}", type_=schedules.c[name].type)
            for name in ("next_at", "due_at", "last_at", "last_job_id", "waiting_at")
        }
        | {"error": None}  # the error may be of a dispatcher that has not imported the kind
    )
)


@dataclass(slots=True)
class _Plan:
    """The firings of one schedule in this round.

    Attributes:
        unfinished: whether the last job has not ended.
        entries: the times that have come, each with the job it makes, or with the reason why it makes none.
        released: the time whose job waited, if its turn has come.
        next_at, last_at, last_job_id, waiting_at: the new values of its row.
    """

    schedule: Schedule
    row: Any
    unfinished: bool
    next_at: datetime | None
    last_at: datetime | None
    last_job_id: str | None
    waiting_at: datetime | None
    entries: list[tuple[datetime, Envelope | None, str | None]] = field(default_factory=list)
    released: datetime | None = None


def fire(database: Database, *due: Schedule, stamp: Stamp | None = None, fired: Fired | None = None) -> bool:
    """Make the jobs of the due times of these schedules. Returns whether more is due already.

    A schedule that has changed in the ledger, is paused there, or is locked by another dispatcher, is left alone.
    """
    by_name = {schedule.name: schedule for schedule in due[:BATCH]}
    tries = 0

    def fire_batch(connection: sa.Connection) -> tuple[list[_Plan], list[dict[str, Any]], bool]:
        nonlocal tries
        tries += 1
        where = (schedules.c.name.in_(list(by_name)), schedules.c.paused_at.is_(None))
        select = sa.select(schedules, from_now().label("now")).where(*where).order_by(schedules.c.due_at)
        rows = [
            row
            for row in connection.execute(database.locked(select, skip=True))
            if row.rule == by_name[row.name].rule
            and row.next_at is not None
            and row.next_at + by_name[row.name].offset <= row.now
        ]
        if not rows:
            return [], [], False
        now = max(row.now for row in rows)
        states = _states(connection, database, [row.last_job_id for row in rows])
        plans: list[_Plan] = []
        times = 0
        for row in rows:
            plans.append(_plan(connection, database, by_name[row.name], row, states, now))
            if (times := times + len(plans[-1].entries)) >= _MOST_TIMES:
                break
        written = _record(connection, database, plans, now, check_existing=tries > 1, stamp=stamp)
        behind = any(plan.next_at is not None and plan.next_at + plan.schedule.offset <= now for plan in plans)
        return plans, written, behind or len(plans) < len(rows)

    plans, written, more = database.write(fire_batch)
    for plan in plans:
        if not plan.entries:
            log.warning("schedule %s: what was missed since %s is dropped", plan.schedule.name, plan.row.next_at)
    _tell(written, fired)
    return more or len(due) > BATCH


def waiting_schedules(database: Database) -> list[str]:
    """Names of schedules with a time that waits for their last job, which has ended."""
    return database.read(lambda connection: list(connection.scalars(_waiting().limit(BATCH))))


def any_waiting() -> sa.ColumnElement[bool]:
    """Whether `waiting_schedules` returns any."""
    return sa.exists(_waiting())


def _waiting() -> sa.Select[tuple[str]]:
    last = schedules.outerjoin(jobs, jobs.c.id == schedules.c.last_job_id)
    over = sa.or_(jobs.c.id.is_(None), jobs.c.state.in_(sorted(FINAL)), is_resting(jobs.c.id))
    waiting = (schedules.c.waiting_at.is_not(None), schedules.c.paused_at.is_(None))
    return sa.select(schedules.c.name).select_from(last).where(*waiting, over)


def release_waiting(
    database: Database,
    names: Sequence[str],
    read: Callable[[Any], Schedule],
    *,
    stamp: Stamp | None = None,
    fired: Fired | None = None,
) -> None:
    """Make the jobs of these schedules that waited for their last jobs to end.

    Arguments:
        read: row → schedule.
    """

    def release_jobs(connection: sa.Connection) -> list[dict[str, Any]]:
        select = sa.select(schedules).where(schedules.c.name.in_(names), schedules.c.paused_at.is_(None))
        rows = connection.execute(database.locked(select.order_by(schedules.c.name), skip=True)).all()
        now: datetime = connection.execute(sa.select(from_now())).scalar_one()
        states = _states(connection, database, [row.last_job_id for row in rows])
        plans = []
        for row in rows:
            schedule = read(row)
            if row.waiting_at is not None and schedule.job is not None:
                plan = _new_plan(schedule, row, states)
                if not plan.unfinished:
                    _release(plan, now)
                    plans.append(plan)
        return _record(connection, database, plans, now, check_existing=False, stamp=stamp)

    _tell(database.write(release_jobs), fired)


def _states(connection: sa.Connection, database: Database, ids: Sequence[str | None]) -> dict[str, str]:
    job_ids = [job_id for job_id in ids if job_id is not None]
    if not job_ids:
        return {}
    # A workflow that rests may do so for weeks. It must not stop its schedule.
    select = sa.select(jobs.c.id, jobs.c.state).where(database.among(jobs.c.id, job_ids), ~is_resting(jobs.c.id))
    return {row.id: row.state for row in connection.execute(select)}


def _new_plan(schedule: Schedule, row: Any, states: dict[str, str]) -> _Plan:
    # A job without a row, as of a kind that keeps only failures, counts as finished.
    state = states.get(row.last_job_id or "")
    unfinished = state is not None and not State(state).final
    return _Plan(schedule, row, unfinished, row.next_at, row.last_at, row.last_job_id, row.waiting_at)


def _plan(
    connection: sa.Connection, database: Database, schedule: Schedule, row: Any, states: dict[str, str], now: datetime
) -> _Plan:
    plan = _new_plan(schedule, row, states)
    if plan.waiting_at is not None and not plan.unfinished:
        _release(plan, now)
    assert schedule.times is not None
    assert schedule.settings is not None
    times, plan.next_at = schedule.times.choose(row.next_at, now - schedule.offset)
    overlap = schedule.settings.overlap
    if overlap == "replace" and times:
        plan.entries += [(time, None, "overlap") for time in times[:-1]]
        times = times[-1:]
        if plan.last_job_id is not None:
            with suppress(InvalidState, JobNotFound):  # it has ended
                cancel_in(connection, database, str(plan.last_job_id))
    for time in times:
        plan.last_at = time
        if plan.unfinished and overlap == "skip":
            plan.entries.append((time, None, "overlap"))
        elif plan.unfinished and overlap == "queue":
            plan.entries.append((time, None, WAITS if plan.waiting_at is None else "overlap"))
            plan.waiting_at = plan.waiting_at or time
        else:
            _add_job(plan, time, now)
    return plan


def _release(plan: _Plan, now: datetime) -> None:
    assert plan.waiting_at is not None
    plan.released, time, plan.waiting_at = plan.waiting_at, plan.waiting_at, None
    _add_job(plan, time, now)


def _add_job(plan: _Plan, time: datetime, now: datetime) -> None:
    try:
        envelope = plan.schedule.envelope(now, time)
    except ValidationError as error:
        settings = plan.schedule.settings
        reason = explain(error, kind=None if settings is None else registry.find(settings.kind))
        log.error("schedule %s: no job for %s: %s", plan.schedule.name, time, reason)
        plan.entries.append((time, None, "invalid"))
        return
    plan.entries.append((time, envelope, None))
    plan.last_job_id, plan.unfinished = envelope.id, True


def _record(
    connection: sa.Connection,
    database: Database,
    plans: Sequence[_Plan],
    now: datetime,
    *,
    check_existing: bool,
    stamp: Stamp | None,
) -> list[dict[str, Any]]:
    """Write the jobs, the firings and the schedules' rows. Returns the firings.

    Arguments:
        check_existing: another dispatcher may have recorded some of these times.
    """
    existing = _existing(connection, plans) if check_existing else set()
    entries: list[tuple[_Plan, datetime, Envelope | None, str | None]] = []
    for plan in plans:
        new = [
            (time, envelope, skipped)
            for time, envelope, skipped in plan.entries
            if (plan.schedule.name, time) not in existing or time == plan.released
        ]
        if len(new) < len(plan.entries):
            sent = (envelope.id for _, envelope, _ in reversed(new) if envelope is not None)
            plan.last_job_id = next(sent, plan.row.last_job_id)
        entries += [(plan, *entry) for entry in new]
    if stamp is not None:
        for plan, _, envelope, _ in entries:
            if envelope is not None:
                stamp(plan.schedule.name, envelope)
    envelopes = [envelope for _, _, envelope, _ in entries if envelope is not None]
    admissions = iter(enter_jobs(connection, database, envelopes, now) if envelopes else [])
    written = []
    for plan, time, envelope, skipped in entries:
        job_id = None
        if envelope is not None:
            admission = next(admissions)
            job_id = admission.job_id
            if not admission.created:
                # The kind is unique, and the job that holds the key counts for this time.
                skipped = "unique"
                if plan.last_job_id == envelope.id:
                    plan.last_job_id = plan.row.last_job_id
        written.append(
            {
                "schedule": plan.schedule.name,
                "fire_at": time,
                "cause": "time",
                "job_id": job_id,
                "fired_at": now,
                "skipped": skipped,
            }
        )
    released = {(plan.schedule.name, plan.released) for plan in plans if plan.released is not None}
    first = [firing for firing in written if (firing["schedule"], firing["fire_at"]) not in released]
    second = [firing for firing in written if (firing["schedule"], firing["fire_at"]) in released]
    if first:
        database.execute_many(connection, database.insert(firings), first)
    if second:
        database.execute_many(connection, database.upsert(firings), second)
    if plans:
        database.execute_many(connection, _ADVANCE, [_advance_row(plan) for plan in plans])
    return written


def _existing(connection: sa.Connection, plans: Sequence[_Plan]) -> set[tuple[str, datetime]]:
    """Firings of these plans that are recorded already."""
    times = [time for plan in plans for time, _, _ in plan.entries]
    if not times:
        return set()
    theirs = firings.c.schedule.in_([plan.schedule.name for plan in plans])
    select = sa.select(firings.c.schedule, firings.c.fire_at).where(theirs, firings.c.fire_at.in_(sorted(set(times))))
    return {(row.schedule, row.fire_at) for row in connection.execute(select)}


def _advance_row(plan: _Plan) -> dict[str, Any]:
    return {
        "b_name": plan.schedule.name,
        "b_next_at": plan.next_at,
        "b_due_at": due_at(plan.schedule, plan.next_at),
        "b_last_at": plan.last_at,
        "b_last_job_id": plan.last_job_id,
        "b_waiting_at": plan.waiting_at,
    }


def _tell(written: Sequence[dict[str, Any]], fired: Fired | None) -> None:
    for firing in written:
        if firing["skipped"]:
            log.warning("schedule %s: no job for %s: %s", firing["schedule"], firing["fire_at"], firing["skipped"])
        else:
            log.info("schedule %s: job %s for %s", firing["schedule"], firing["job_id"], firing["fire_at"])
            if fired is not None:
                fired(firing["schedule"], firing["job_id"])
