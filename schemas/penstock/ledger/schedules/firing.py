"""The firing itself: which times of a schedule make a job, and entering both in one transaction.

`penstock_firings` has a unique key of schedule and time. Dispatchers that look at the same time skip each other's rows;
should two get past that, the key stops the second, whose transaction is then run again with what it finds there.
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
from penstock.ledger.queries.status import cancel
from penstock.ledger.schedules.commands import WAITS, due_at
from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.ledger.transitions.enqueue import enter as enter_jobs
from penstock.schemas.schedules.times import MOST_AT_ONCE
from penstock.schemas.states import FINAL, State
from penstock.schemas.wire.codec import Envelope, explain

log = logging.getLogger("penstock.dispatcher")

BATCH = 500
"""Schedules fired in one transaction,"""
_MOST = 2 * MOST_AT_ONCE
"""and about how many of their times, if many were missed."""

_ADVANCE = (
    sa.update(schedules)
    .where(schedules.c.name == sa.bindparam("b_name"))
    .values(
        {
            name: sa.bindparam(f"b_{name}", type_=schedules.c[name].type)
            for name in ("next_at", "due_at", "last_at", "last_job_id", "waiting_at")
        }
        | {"error": None}  # of a dispatcher that has not imported the kind
    )
)


@dataclass(slots=True)
class _Plan:
    """What becomes of one schedule in this round.

    Attributes:
        unfinished: whether the last job has not ended.
        entries: the times that have come, each with the job it makes, or why it makes none.
        released: the time whose job waited, if its turn has come.
        next_at, last_at, last_job_id, waiting_at: as they will be in its row.
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


def fire(database: Database, *rules: Schedule) -> bool:
    """Make the jobs of schedules' due times. Whether more is due already: of their times, or for lack of room here.

    One that has changed in the ledger, is paused there, or that another dispatcher is at, is left alone.
    """
    by_name = {rule.name: rule for rule in rules[:BATCH]}
    tries = 0

    def write(connection: sa.Connection) -> tuple[list[_Plan], list[dict[str, Any]], bool]:
        nonlocal tries
        tries += 1
        mine = (schedules.c.name.in_(list(by_name)), schedules.c.paused_at.is_(None))
        select = sa.select(schedules, from_now().label("now")).where(*mine).order_by(schedules.c.due_at)
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
            if (times := times + len(plans[-1].entries)) >= _MOST:
                break
        entered = _enter(connection, database, plans, now, look=tries > 1)
        behind = any(plan.next_at is not None and plan.next_at + plan.schedule.offset <= now for plan in plans)
        return plans, entered, behind or len(plans) < len(rows)

    plans, entered, more = database.write(write)
    for plan in plans:
        if not plan.entries:
            log.warning("schedule %s: what was missed since %s is dropped", plan.schedule.name, plan.row.next_at)
    _say(entered)
    return more or len(rules) > BATCH


def waiting(database: Database) -> list[str]:
    """Schedules with a job that waits for the last one, which has ended."""
    last = schedules.outerjoin(jobs, jobs.c.id == schedules.c.last_job_id)
    over = sa.or_(jobs.c.id.is_(None), jobs.c.state.in_(sorted(FINAL)))
    mine = (schedules.c.waiting_at.is_not(None), schedules.c.paused_at.is_(None))
    select = sa.select(schedules.c.name).select_from(last).where(*mine, over).limit(BATCH)
    return database.read(lambda connection: list(connection.scalars(select)))


def release(database: Database, names: Sequence[str], read: Callable[[Any], Schedule]) -> None:
    """Make the jobs that waited for the last ones of these schedules.

    Arguments:
        read: gives the schedule of a row.
    """

    def write(connection: sa.Connection) -> list[dict[str, Any]]:
        select = sa.select(schedules).where(schedules.c.name.in_(names), schedules.c.paused_at.is_(None))
        rows = connection.execute(database.locked(select.order_by(schedules.c.name), skip=True)).all()
        now: datetime = connection.execute(sa.select(from_now())).scalar_one()
        states = _states(connection, database, [row.last_job_id for row in rows])
        plans = []
        for row in rows:
            schedule = read(row)
            if row.waiting_at is not None and schedule.job is not None:
                plan = _start(schedule, row, states)
                if not plan.unfinished:
                    _release(plan, now)
                    plans.append(plan)
        return _enter(connection, database, plans, now, look=False)

    _say(database.write(write))


def _states(connection: sa.Connection, database: Database, ids: Sequence[str | None]) -> dict[str, str]:
    wanted = [one for one in ids if one is not None]
    if not wanted:
        return {}
    select = sa.select(jobs.c.id, jobs.c.state).where(database.among(jobs.c.id, wanted))
    return {row.id: row.state for row in connection.execute(select)}


def _start(schedule: Schedule, row: Any, states: dict[str, str]) -> _Plan:
    # A job without a row, as of a kind that keeps only failures, counts as finished.
    state = states.get(row.last_job_id or "")
    unfinished = state is not None and not State(state).final
    return _Plan(schedule, row, unfinished, row.next_at, row.last_at, row.last_job_id, row.waiting_at)


def _plan(
    connection: sa.Connection, database: Database, schedule: Schedule, row: Any, states: dict[str, str], now: datetime
) -> _Plan:
    plan = _start(schedule, row, states)
    if plan.waiting_at is not None and not plan.unfinished:
        _release(plan, now)
    assert schedule.times is not None
    assert schedule.settings is not None
    times, plan.next_at = schedule.times.choose(row.next_at, now - schedule.offset)
    overlap = schedule.settings.overlap
    if overlap == "replace" and times:
        plan.entries += [(time, None, "overlap") for time in times[:-1]]
        times = times[-1:]
        if plan.unfinished:
            with suppress(InvalidState, JobNotFound):  # it has ended
                cancel(connection, database, str(plan.last_job_id))
    for time in times:
        plan.last_at = time
        if plan.unfinished and overlap == "skip":
            plan.entries.append((time, None, "overlap"))
        elif plan.unfinished and overlap == "queue":
            plan.entries.append((time, None, WAITS if plan.waiting_at is None else "overlap"))
            plan.waiting_at = plan.waiting_at or time
        else:
            _make(plan, time, now)
    return plan


def _release(plan: _Plan, now: datetime) -> None:
    assert plan.waiting_at is not None
    plan.released, time, plan.waiting_at = plan.waiting_at, plan.waiting_at, None
    _make(plan, time, now)


def _make(plan: _Plan, time: datetime, now: datetime) -> None:
    try:
        envelope = plan.schedule.envelope(now, time)
    except ValidationError as error:
        log.error("schedule %s: no job for %s: %s", plan.schedule.name, time, explain(error))
        plan.entries.append((time, None, "invalid"))
        return
    plan.entries.append((time, envelope, None))
    plan.last_job_id, plan.unfinished = envelope.id, True


def _enter(
    connection: sa.Connection, database: Database, plans: Sequence[_Plan], now: datetime, *, look: bool
) -> list[dict[str, Any]]:
    """Write jobs, firings and where each schedule stands. Returns the firings.

    Arguments:
        look: another dispatcher may have entered some of these times.
    """
    done = _done(connection, plans) if look else set()
    entries: list[tuple[_Plan, datetime, Envelope | None, str | None]] = []
    for plan in plans:
        mine = [one for one in plan.entries if (plan.schedule.name, one[0]) not in done or one[0] == plan.released]
        if len(mine) < len(plan.entries):
            plan.last_job_id = next((one[1].id for one in reversed(mine) if one[1]), plan.row.last_job_id)
        entries += [(plan, *one) for one in mine]
    envelopes = [envelope for _, _, envelope, _ in entries if envelope is not None]
    admissions = iter(enter_jobs(connection, database, envelopes, now) if envelopes else [])
    written = []
    for plan, time, envelope, skipped in entries:
        job_id = None
        if envelope is not None:
            admission = next(admissions)
            job_id = admission.job_id
            if not admission.created:
                # Of a unique kind whose key is held: that job stands for this time.
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
    fresh = [one for one in written if (one["schedule"], one["fire_at"]) not in released]
    again = [one for one in written if (one["schedule"], one["fire_at"]) in released]
    if fresh:
        database.execute_many(connection, database.insert(firings), fresh)
    if again:
        database.execute_many(connection, database.upsert(firings), again)
    if plans:
        database.execute_many(connection, _ADVANCE, [_advanced(plan) for plan in plans])
    return written


def _done(connection: sa.Connection, plans: Sequence[_Plan]) -> set[tuple[str, datetime]]:
    times = [time for plan in plans for time, _, _ in plan.entries]
    if not times:
        return set()
    mine = firings.c.schedule.in_([plan.schedule.name for plan in plans])
    select = sa.select(firings.c.schedule, firings.c.fire_at).where(mine, firings.c.fire_at.in_(sorted(set(times))))
    return {(row.schedule, row.fire_at) for row in connection.execute(select)}


def _advanced(plan: _Plan) -> dict[str, Any]:
    return {
        "b_name": plan.schedule.name,
        "b_next_at": plan.next_at,
        "b_due_at": due_at(plan.schedule, plan.next_at),
        "b_last_at": plan.last_at,
        "b_last_job_id": plan.last_job_id,
        "b_waiting_at": plan.waiting_at,
    }


def _say(entered: Sequence[dict[str, Any]]) -> None:
    for entry in entered:
        if entry["skipped"]:
            log.warning("schedule %s: no job for %s: %s", entry["schedule"], entry["fire_at"], entry["skipped"])
        else:
            log.info("schedule %s: job %s for %s", entry["schedule"], entry["job_id"], entry["fire_at"])
