"""Fires schedules. However many dispatchers run, each time of a schedule makes one job.

A time is *missed* when, by the time a dispatcher looks, it is over a minute late or the schedule's next time has come
too. `misfire` says what becomes of missed times: `skip` drops them, `once` makes up for all of them with one job, `all`
makes a job of each (which needs `overlap = "allow"` to be more than one).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState, JobNotFound
from penstock.producers.records import request_cancel
from penstock.producers.unique import enter as enter_jobs
from penstock.schemas.database import Database
from penstock.schemas.states import State
from penstock.schemas.tables import firings, jobs, schedules
from penstock.workers.dispatcher.cron import fire_times, next_time
from penstock.workers.dispatcher.pollers import Poller, log
from penstock.workers.dispatcher.rules import Schedule

TOLERANCE = timedelta(minutes=1)
_MOST_AT_ONCE = 500
"""Missed times made up for in one round; the rest follow in the next."""


class Schedules(Poller):
    name = "schedules"
    interval_seconds = 0.1

    def __init__(self, database: Database, rules: Sequence[Schedule]) -> None:
        super().__init__()
        self._database = database
        self._rules = {rule.name: rule for rule in rules}
        self._entered = False

    def work(self) -> bool:
        if not self._entered:
            enter(self._database, list(self._rules.values()))
            self._entered = True
        more = [fire(self._database, self._rules[name]) for name in self._due()]
        return any(more)

    def _due(self) -> list[str]:
        if not self._rules:
            return []
        select = sa.select(schedules.c.name).where(schedules.c.next_at <= datetime.now(UTC))
        names = self._database.read(lambda connection: list(connection.scalars(select)))
        return [name for name in names if name in self._rules and self._rules[name].job is not None]


def enter(database: Database, rules: Sequence[Schedule]) -> None:
    """Make the ledger's schedules those of the file. One that is as it was keeps its next time, so that times which
    passed while nobody was up count as missed; a new or changed one starts from now."""
    now = datetime.now(UTC)
    for rule in rules:
        if rule.error is not None:
            log.error("%s; it does not fire, the others do", rule.error)

    def write(connection: sa.Connection) -> None:
        known = {row.name: row for row in connection.execute(database.locked(sa.select(schedules)))}
        gone = [name for name in known if name not in {rule.name for rule in rules}]
        if gone:
            connection.execute(sa.delete(schedules).where(schedules.c.name.in_(gone)))
        for rule in rules:
            row = known.get(rule.name)
            first = None if rule.error else next_time(rule.settings.cron, rule.settings.timezone, now)
            if row is None:
                entry = {"name": rule.name, "rule": rule.rule, "next_at": first, "error": rule.error}
                connection.execute(database.insert_ignore(schedules), [entry])
            else:
                # Kept even with an error: another dispatcher may have imported what this one lacks, and fire it.
                kept = row.rule == rule.rule and row.next_at is not None
                change = {"rule": rule.rule, "next_at": row.next_at if kept else first, "error": rule.error}
                connection.execute(sa.update(schedules).where(schedules.c.name == rule.name).values(**change))

    database.write(write)


def fire(database: Database, rule: Schedule) -> bool:
    """Make the jobs of a schedule's due times. Whether more of its times are due already.

    A time is entered in `penstock_firings`, whose key lets it in once, in the transaction that makes its job.
    """
    if rule.settings.overlap == "replace":
        # Before the firing, in a transaction of its own. A crash between leaves the time due, and the next round fires.
        _cancel_last(database, rule)

    def write(connection: sa.Connection) -> tuple[list[dict[str, Any]], bool]:
        # Another dispatcher that is at this schedule is not waited for. One with a newer file has changed the rule.
        select = sa.select(schedules).where(schedules.c.name == rule.name, schedules.c.rule == rule.rule)
        row = connection.execute(database.locked(select, skip=True)).first()
        now = datetime.now(UTC)
        if row is None or row.next_at is None or row.next_at > now:
            return [], False
        fired, next_at = choose(rule, row.next_at, now)
        if not fired:
            log.warning("schedule %s: missed since %s; misfire is skip", rule.name, row.next_at)
        last, made = row.last_job_id, []
        for time in fired:
            last, entry = _enter_firing(connection, database, rule, time, last, now)
            made.append(entry)
        change = {"next_at": next_at, "last_at": fired[-1] if fired else row.last_at, "last_job_id": last}
        connection.execute(sa.update(schedules).where(schedules.c.name == rule.name).values(**change))
        return made, next_at is not None and next_at <= now

    made, more = database.write(write)
    for entry in made:
        if entry["skipped"]:
            log.warning("schedule %s: %s is skipped: %s", rule.name, entry["fire_at"], entry["skipped"])
        else:
            log.info("schedule %s: job %s for %s", rule.name, entry["job_id"], entry["fire_at"])
    return more


def choose(rule: Schedule, first: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
    """Which due times make a job, and the next time to look at."""
    cron, zone, misfire = rule.settings.cron, rule.settings.timezone, rule.settings.misfire
    if misfire == "all":
        times = [first, *takewhile(lambda time: time <= now, islice(fire_times(cron, zone, first), _MOST_AT_ONCE - 1))]
        return times, next_time(cron, zone, times[-1])
    newest = _newest(cron, zone, first, now)
    following = next_time(cron, zone, newest)
    if misfire == "skip" and now - newest > TOLERANCE:
        return [], following
    return [newest], following


def _newest(cron: str, zone: str, first: datetime, now: datetime) -> datetime:
    """The latest time until now. Looked for from near to far, so that a year away does not mean a million steps."""
    for reach in (timedelta(minutes=2), timedelta(hours=2), timedelta(days=2), timedelta(days=64)):
        if now - reach > first:
            times = list(takewhile(lambda time: time <= now, fire_times(cron, zone, now - reach)))
            if times:
                return times[-1]
    return [first, *takewhile(lambda time: time <= now, fire_times(cron, zone, first))][-1]


def _enter_firing(
    connection: sa.Connection, database: Database, rule: Schedule, time: datetime, last: str | None, now: datetime
) -> tuple[str | None, dict[str, Any]]:
    """Enter one time and its job. Returns the last job's id from now on, and the entry."""
    envelope = rule.envelope(now)
    running = rule.settings.overlap == "skip" and _is_unfinished(connection, last)
    entry = {
        "schedule": rule.name,
        "fire_at": time,
        "job_id": None if running else envelope.id,
        "fired_at": now,
        "skipped": "overlap" if running else None,
    }
    entered = connection.execute(database.insert_ignore(firings), entry)
    if entered.rowcount == 0:
        return last, entry | {"skipped": "fired before"}
    if running:
        return last, entry
    [answer] = enter_jobs(connection, database, [envelope], now)
    if answer.created:
        return envelope.id, entry
    # Of a unique kind whose key is held: that job stands for this time.
    change = {"job_id": answer.job_id, "skipped": "unique"}
    mine = sa.and_(firings.c.schedule == rule.name, firings.c.fire_at == time)
    connection.execute(sa.update(firings).where(mine).values(**change))
    return last, entry | change


def _is_unfinished(connection: sa.Connection, job_id: str | None) -> bool:
    """A job without a row, as of a kind that keeps only failures, counts as finished."""
    state = connection.execute(sa.select(jobs.c.state).where(jobs.c.id == job_id)).scalar() if job_id else None
    return state is not None and not State(state).final


def _cancel_last(database: Database, rule: Schedule) -> None:
    select = sa.select(schedules).where(schedules.c.name == rule.name, schedules.c.rule == rule.rule)
    row = database.read(lambda connection: connection.execute(select).first())
    now = datetime.now(UTC)
    if row is None or row.last_job_id is None or row.next_at is None or row.next_at > now:
        return
    if choose(rule, row.next_at, now)[0]:
        with suppress(InvalidState, JobNotFound):  # it has ended
            request_cancel(database, row.last_job_id)


def recorded(database: Database) -> dict[str, Any]:
    """The ledger's row of each schedule, by name."""
    return database.read(lambda connection: {row.name: row for row in connection.execute(sa.select(schedules))})
