"""A scrape of a dispatcher's metrics next to five million rows, and what reading the numbers costs the database.

The ledger is PostgreSQL, the broker Redis. Of the rows, a tenth are dead letters that wait for a decision; the others
are jobs: most have ended, a twentieth was sent, and some are due.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from statistics import quantiles
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.plan import Plan, say
from benchmarks.session import BenchError
from benchmarks.tables import Table
from penstock.config.settings import Settings
from penstock.ledger.queries import fleet
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions.due import keep, waiting
from penstock.schemas import Job
from penstock.schemas.wire.codec import encode
from penstock.workers.telemetry.metrics.dispatcher_metrics import dispatcher_collectors
from penstock.workers.telemetry.operation import review_operation

ROWS = 5_000_000
SCRAPES = 200
WAIT_SECONDS = 120.0
_STEP = 500_000
_READ_LAST = (b"penstock_dead_letters{", b"penstock_dispatcher_due ", b"penstock_outbox_jobs{")


class Order(Job, kind="bench.order", queue="bench-scrape"):
    number: int


@dataclass
class Observed:
    """A dispatcher without services."""

    settings: Settings
    database: Database

    def sent(self) -> Counter[str]:
        return Counter()

    def pruned(self) -> Counter[str]:
        return Counter()


def postgres(plan: Plan) -> list[Table]:
    count = plan.jobs(ROWS, 100_000) if plan.scale == 1.0 else 100_000
    scrapes = Table(f"Scrape of a dispatcher, {count:,} rows", "ms", more_is_better=False)
    reads = Table(f"Reading of the numbers in the background, {count:,} rows, PostgreSQL", "ms", more_is_better=False)
    doctor = Table(f"Doctor about what runs, {count:,} rows", "ms", more_is_better=False)
    scrapes.limits, doctor.limits = {"p99": 50.0}, {"all checks": 2000.0}
    if not plan.servers.has_postgres:
        return [scrapes, reads, doctor]
    plan.servers.clear("redis")
    settings = Settings(broker_url=plan.servers.redis.url, database_url=plan.servers.postgres_url)
    database = Database(settings.database_url)
    try:
        _fill(database, count)
        for number in range(plan.rounds):
            say(f"round {number + 1}/{plan.rounds}: scrape")
            for name, value in _scrape(settings, database).items():
                scrapes.add(name, value, peer=False)
            for name, read in _READS.items():
                reads.add(name, _milliseconds(lambda read=read: read(database)), peer=False)  # type: ignore[misc]
            doctor.add("all checks", _milliseconds(lambda: list(review_operation(settings, database))), peer=False)
    except BenchError as error:
        plan.errors.append(str(error))
        say(str(error))
    finally:
        database.close()
    return [scrapes, reads, doctor]


_READS: dict[str, Callable[[Database], Any]] = {
    "jobs that are due": fleet.count_due,
    "their lateness": fleet.lateness,
    "open dead letters by queue and kind": fleet.open_dead_letters,
    "schedules": fleet.overdue_schedule,
    "workflows that rest": fleet.count_resting,
}


def _milliseconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def _scrape(settings: Settings, database: Database) -> dict[str, float]:
    registry = CollectorRegistry()
    collectors = dispatcher_collectors(Observed(settings, database))
    try:
        for collector in collectors:
            registry.register(collector)
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(name in generate_latest(registry) for name in _READ_LAST):
            if time.monotonic() > deadline:
                raise BenchError("scrape: the numbers were not read")
            time.sleep(0.05)
        times = [_milliseconds(lambda: generate_latest(registry)) for _ in range(SCRAPES)]
    finally:
        for collector in collectors:
            collector.close()
    cuts = quantiles(times, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def _fill(database: Database, count: int) -> None:
    letters = count // 10
    keep(database, [waiting(encode(Order(number=1), id="template"))])
    now = sa.func.now()
    state = sa.text("CASE WHEN n % 20 = 0 THEN 'queued' WHEN n % 500 = 1 THEN 'scheduled' ELSE 'succeeded' END")
    ended = sa.text("CASE WHEN n % 20 > 0 AND n % 500 <> 1 THEN now() END")
    for start in range(0, count - letters, _STEP):
        until = min(start + _STEP, count - letters)
        overrides = {"id": sa.text("'job-' || lpad(n::text, 12, '0')"), "state": state, "finished_at": ended}
        _copy(database, jobs, start, until, {**overrides, "due_at": now})
        say(f"{until:,} of {count:,} rows")
    letter: Mapping[str, Any] = {
        "id": sa.text("'letter-' || n"),
        "kind": sa.text("'bench.kind-' || n % 40"),
        "queue": sa.text("'queue-' || n % 5"),
        "created_at": now - timedelta(days=1),
        **{
            name: sa.literal(text) for name, text in (("reason", "failed"), ("detail", "x" * 300), ("fingerprint", "f"))
        },
    }
    _copy(database, dead_letters, 0, letters, letter, template=False)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in (jobs, dead_letters):
            connection.execute(sa.text(f"VACUUM ANALYZE {table.name}"))


def _copy(
    database: Database, table: sa.Table, start: int, until: int, columns: Mapping[str, Any], *, template: bool = True
) -> None:
    """Insert rows numbered `n`, with these columns; the others are as in the template's row, or NULL."""
    numbers = sa.func.generate_series(start, until - 1).table_valued("n").render_derived(name="numbers")
    names = [column.name for column in table.columns if template or column.name in columns]
    select = sa.select(*(columns[name] if name in columns else table.c[name] for name in names)).select_from(
        numbers.join(table, table.c.id == "template") if template else numbers
    )
    database.write(lambda connection: connection.execute(sa.insert(table).from_select(names, select)))
