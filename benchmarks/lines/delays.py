"""Jobs that wait in the ledger: how fast a dispatcher sends what is due at once, how late it is under a steady flow,
and whether either changes with a million rows that are not due.

The ledger is PostgreSQL, the broker Redis, and the dispatcher's own service runs, in a thread of this process. Lateness
is from a job's due time to the moment its envelope has been handed to Redis.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import quantiles

import sqlalchemy as sa

from benchmarks.plan import Plan, say
from benchmarks.session import STALL_SECONDS, BenchError
from benchmarks.tables import Table
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.due import keep, waiting
from penstock.producers.senders import Sender, open_sender
from penstock.schemas import Job
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Envelope, encode
from penstock.workers.dispatcher.due_jobs import DueJobs

WAITING = 1_000_000
AT_ONCE = 50_000
PER_SECOND = 1000
SECONDS = 10
INSERTED_AT_ONCE = 500
"""As the dispatcher takes them in."""
AHEAD = timedelta(seconds=3)


class Reminder(Job, kind="bench.reminder", queue="bench-delays"):
    user: int
    text: str


class Stamping:
    """A sender that notes when each job was sent."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.sent: dict[str, float] = {}

    def send(self, envelopes: Sequence[Envelope]) -> None:
        self._sender.send(envelopes)
        now = time.time()
        self.sent.update((envelope.id, now) for envelope in envelopes)

    def ping(self) -> None:
        self._sender.ping()

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return self._sender.depths(queues)

    def close(self) -> None:
        self._sender.close()


def postgres(plan: Plan) -> list[Table]:
    inserted = Table("Delayed jobs into the ledger, PostgreSQL, 500 a transaction", "jobs/s")
    rates = Table("Delayed jobs due at once, PostgreSQL and Redis, one dispatcher", "jobs/s")
    late = Table(f"Lateness at {PER_SECOND:,} due per second, the same", "ms", more_is_better=False)
    if not plan.servers.has_postgres:
        return [inserted, rates, late]
    count = plan.jobs(WAITING, 10_000)
    filled = f"{count:,} waiting"
    late.limits = {f"p99, {rows}": 250.0 for rows in ("nothing else waiting", filled)}
    rates.limits = dict.fromkeys(("nothing else waiting", filled), 5000.0)
    for rows in ("nothing else waiting", filled):
        plan.servers.clear("redis")
        database = Database(plan.servers.postgres_url)
        try:
            if rows == filled:
                began = time.perf_counter()
                _fill(database, count)
                inserted.add("months ahead", count / (time.perf_counter() - began), peer=False)
            _analyze(database)
            for number in range(plan.rounds):
                say(f"round {number + 1}/{plan.rounds}: delays, {rows}")
                rates.add(rows, _at_once(plan, database, plan.jobs(AT_ONCE)), peer=False)
                p50, p99 = _flow(plan, database, PER_SECOND * plan.jobs(SECONDS, 3))
                late.add(f"p50, {rows}", p50, peer=False)
                late.add(f"p99, {rows}", p99, peer=False)
        except BenchError as error:
            plan.errors.append(str(error))
            say(str(error))
        finally:
            database.close()
    return [inserted, rates, late]


def _fill(database: Database, count: int) -> None:
    """Jobs due over the coming year, a day from now at the earliest."""
    now, step = datetime.now(UTC) + timedelta(days=1), timedelta(days=365) / count
    for start in range(0, count, INSERTED_AT_ONCE):
        numbers = range(start, min(start + INSERTED_AT_ONCE, count))
        # Spread, so that neighbours in time are not neighbours in the table.
        _insert(database, [now + step * (number * 7919 % count) for number in numbers])
        if start % 100_000 == 0:
            say(f"{start:,} of {count:,} rows")


def _insert(database: Database, due: Sequence[datetime]) -> dict[str, datetime]:
    envelopes = [encode(Reminder(user=number, text="your trial ends"), due_at=at) for number, at in enumerate(due)]
    keep(database, [waiting(envelope) for envelope in envelopes])
    return {envelope.id: at for envelope, at in zip(envelopes, due, strict=True)}


def _analyze(database: Database) -> None:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"VACUUM ANALYZE {jobs.name}"))


@contextmanager
def _dispatching(plan: Plan, database: Database) -> Iterator[Stamping]:
    sender = Stamping(open_sender(plan.servers.redis.url, prefix=f"b{uuid.uuid4().hex[:8]}"))
    service = DueJobs(database, sender)
    service.start()
    try:
        yield sender
    finally:
        service.stop()
        service.join(30)
        # What was sent is gone from here as from any ledger that is pruned.
        database.write(lambda connection: connection.execute(sa.delete(jobs).where(jobs.c.state == State.QUEUED)))


def _at_once(plan: Plan, database: Database, count: int) -> float:
    due = datetime.now(UTC)
    for start in range(0, count, 5000):
        _insert(database, [due] * min(5000, count - start))
    began = time.perf_counter()
    with _dispatching(plan, database) as sender:
        _wait(database, sender, count)
        return count / (time.perf_counter() - began)


def _flow(plan: Plan, database: Database, count: int) -> tuple[float, float]:
    """Median and 99th percentile of the lateness, in milliseconds, of jobs due one after the other."""
    start = datetime.now(UTC) + AHEAD + timedelta(seconds=count / 2000)
    due: dict[str, datetime] = {}
    for first in range(0, count, 5000):
        numbers = range(first, min(first + 5000, count))
        due |= _insert(database, [start + timedelta(seconds=number / PER_SECOND) for number in numbers])
    if datetime.now(UTC) > start:
        raise BenchError("delays: the jobs were due before all of them were in the ledger")
    with _dispatching(plan, database) as sender:
        _wait(database, sender, count)
    lateness = [(sender.sent[job_id] - at.timestamp()) * 1000 for job_id, at in due.items()]
    cuts = quantiles(lateness, n=100)
    return cuts[49], cuts[98]


def _wait(database: Database, sender: Stamping, count: int) -> None:
    """Until so many were sent and are marked as sent."""
    before, deadline = -1, time.monotonic() + STALL_SECONDS
    while (sent := len(sender.sent)) < count:
        if sent > before:
            before, deadline = sent, time.monotonic() + STALL_SECONDS
        if time.monotonic() > deadline:
            raise BenchError(f"delays: {sent} of {count} jobs were sent")
        time.sleep(0.01)
    marked = sa.select(sa.func.count()).where(jobs.c.state == State.QUEUED)
    while database.read(lambda connection: connection.execute(marked).scalar_one()) < count:
        if time.monotonic() > deadline + STALL_SECONDS:
            raise BenchError("delays: not all that was sent is marked as sent")
        time.sleep(0.01)
