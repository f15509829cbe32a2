"""Schedules that are due in the same minute: how late their jobs are handed to the broker.

The ledger is PostgreSQL, the broker Redis, and a dispatcher's own services run, in threads of this process. Lateness is
from a schedule's due time to the moment its job's envelope has been handed to Redis.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from statistics import quantiles

import sqlalchemy as sa

from benchmarks.lines.delays import Stamping
from benchmarks.plan import Plan, say
from benchmarks.session import STALL_SECONDS, BenchError
from benchmarks.tables import Table
from penstock.config.settings import ScheduleSettings, Settings
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.senders import open_sender
from penstock.schemas import Job
from penstock.schemas.schedules.times import jitter_offset
from penstock.workers.dispatcher.due_jobs import DueJobs
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.dispatcher.schedules.service import Schedules

SCHEDULES = 10_000
MINUTE = timedelta(minutes=1)
AHEAD = timedelta(seconds=25)
"""Between the start of the dispatcher and the minute."""
SPREAD, AT_ONCE = "spread over the minute by jitter", "all in one second"


class Beat(Job, kind="bench.beat", queue="bench-schedules"):
    name: str


def postgres(plan: Plan) -> Table:
    count = plan.jobs(SCHEDULES, 1000)
    table = Table(f"Lateness of {count:,} schedules due in the same minute, one dispatcher", "ms", more_is_better=False)
    if not plan.servers.has_postgres:
        return table
    table.limits = {f"p99, {SPREAD}": 150.0}
    for number in range(plan.rounds):
        for how, jitter in ((SPREAD, MINUTE), (AT_ONCE, timedelta())):
            say(f"round {number + 1}/{plan.rounds}: schedules, {how}")
            plan.servers.clear("redis")
            database = Database(plan.servers.postgres_url)
            try:
                p50, p99 = _minute(plan, database, count, jitter)
            except BenchError as error:
                plan.errors.append(str(error))
                say(str(error))
                return table
            finally:
                database.close()
            table.add(f"p50, {how}", p50, peer=False)
            table.add(f"p99, {how}", p99, peer=False)
    return table


def _minute(plan: Plan, database: Database, count: int, jitter: timedelta) -> tuple[float, float]:
    """Median and 99th percentile of the lateness, in milliseconds."""
    upgrade(database)
    for rows in (schedules, firings, jobs):
        database.write(lambda connection, rows=rows: connection.execute(sa.delete(rows)))  # type: ignore[misc]
    due = _full_minute(datetime.now(UTC) + AHEAD + timedelta(seconds=count / 1000))
    names = [f"bench-{number}" for number in range(count)]
    rule = {"kind": "bench.beat", "cron": f"{due.minute} {due.hour} * * *", "jitter": jitter}
    settings = Settings(schedules={name: ScheduleSettings(**rule, payload={"name": name}) for name in names})  # type: ignore[arg-type]
    declare_schedules(database, read_schedules(settings))
    if datetime.now(UTC) + AHEAD > due:
        raise BenchError("schedules: they were due before all of them were in the ledger")
    sender = Stamping(open_sender(plan.servers.redis.url, prefix=f"b{uuid.uuid4().hex[:8]}"))
    due_jobs = DueJobs(database, sender)
    services = [Schedules(database, settings, due_jobs.wakeup), due_jobs]
    for service in services:
        service.start()
    try:
        deadline = time.monotonic() + (due + MINUTE - datetime.now(UTC)).total_seconds() + STALL_SECONDS
        while len(sender.sent) < count:
            if time.monotonic() > deadline:
                raise BenchError(f"schedules: {len(sender.sent)} of {count} jobs were sent")
            time.sleep(0.05)
    finally:
        for service in services:
            service.stop()
        for service in services:
            service.join(30)
    fired = database.read(lambda connection: connection.execute(sa.select(firings)).all())
    late = [
        (sender.sent[row.job_id] - (row.fire_at + jitter_offset(row.schedule, jitter)).timestamp()) * 1000
        for row in fired
    ]
    cuts = quantiles(late, n=100)
    return cuts[49], cuts[98]


def _full_minute(time: datetime) -> datetime:
    return time.replace(second=0, microsecond=0) + MINUTE
