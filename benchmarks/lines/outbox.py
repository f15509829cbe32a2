"""The outbox: from before the commit to the moment the broker has the job, and how fast a full outbox is emptied.

Database and ledger are one on PostgreSQL, the broker is Redis, and the dispatcher's own services run in threads of this
process, next to the one that commits.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles

import sqlalchemy as sa

from benchmarks.lines.delays import Reminder, Stamping
from benchmarks.plan import Plan, say
from benchmarks.session import STALL_SECONDS, BenchError
from benchmarks.tables import Table
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox
from penstock.producers.outbox import Outbox
from penstock.producers.senders import open_sender
from penstock.workers.dispatcher.outbox.notifications import Notifications
from penstock.workers.dispatcher.outbox.relay import OutboxRelay

AT_ONCE = 30_000
PER_SECOND = 100
SECONDS = 10


def postgres(plan: Plan) -> list[Table]:
    late = Table(f"From commit to broker at {PER_SECOND} commits/s, PostgreSQL and Redis", "ms", more_is_better=False)
    rates = Table("A full outbox emptied, PostgreSQL and Redis, one dispatcher", "jobs/s")
    late.limits, rates.limits = {"p50": 20.0}, {"one dispatcher": 5000.0}
    if not plan.servers.has_postgres:
        return [late, rates]
    for number in range(plan.rounds):
        say(f"round {number + 1}/{plan.rounds}: outbox")
        plan.servers.clear("redis")
        database = Database(plan.servers.postgres_url)
        try:
            p50, p99 = _flow(plan, database, PER_SECOND * plan.jobs(SECONDS, 3))
            late.add("p50", p50, peer=False)
            late.add("p99", p99, peer=False)
            rate, cpu = _at_once(plan, database, plan.jobs(AT_ONCE))
            rates.add("one dispatcher", rate, peer=False, cpu=cpu)
        except BenchError as error:
            plan.errors.append(str(error))
            say(str(error))
        finally:
            database.close()
    return [late, rates]


@contextmanager
def _relaying(plan: Plan, database: Database) -> Iterator[Stamping]:
    sender = Stamping(open_sender(plan.servers.redis.url, prefix=f"b{uuid.uuid4().hex[:8]}"))
    relay = OutboxRelay(database, database, sender)
    services = [relay, Notifications(database, relay.wakeup)]
    for service in services:
        service.start()
    try:
        yield sender
    finally:
        for service in services:
            service.stop()
        for service in services:
            service.join(30)


def _flow(plan: Plan, database: Database, count: int) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds, of jobs committed one by one."""
    committed: dict[str, float] = {}
    with _relaying(plan, database) as sender, database.engine.connect() as connection:
        _commit(connection, "the first")  # the services have connected
        _wait(database, sender, 1)
        begin = time.monotonic()
        for number in range(count):
            time.sleep(max(begin + number / PER_SECOND - time.monotonic(), 0))
            job_id, at = _commit(connection, str(number))
            committed[job_id] = at
        _wait(database, sender, count + 1)
    cuts = quantiles([(sender.sent[job_id] - at) * 1000 for job_id, at in committed.items()], n=100)
    return cuts[49], cuts[98]


def _commit(connection: sa.Connection, text: str) -> tuple[str, float]:
    handle = Outbox().enqueue(connection, Reminder(user=1, text=text))
    before = time.time()
    connection.commit()
    return handle.id, before


def _at_once(plan: Plan, database: Database, count: int) -> tuple[float, float]:
    """Jobs a second, and processor microseconds a job."""
    for start in range(0, count, 1000):
        with database.engine.begin() as connection:
            jobs = [Reminder(user=number, text="your trial ends") for number in range(start, min(start + 1000, count))]
            Outbox().enqueue_many(connection, jobs)
    began, cpu = time.perf_counter(), time.process_time()
    with _relaying(plan, database) as sender:
        _wait(database, sender, count)
        return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6


def _wait(database: Database, sender: Stamping, count: int) -> None:
    """Until so many were sent and the outbox is empty."""
    before, deadline = -1, time.monotonic() + STALL_SECONDS
    left = sa.select(outbox.c.position).limit(1)
    while (sent := len(sender.sent)) < count or database.read(lambda connection: connection.execute(left).first()):
        if sent > before:
            before, deadline = sent, time.monotonic() + STALL_SECONDS
        if time.monotonic() > deadline:
            raise BenchError(f"outbox: {sent} of {count} jobs were sent")
        time.sleep(0.01)
