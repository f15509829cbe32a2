"""Whether a longer queue or a larger ledger is slower, and what a waiting job takes of Redis's memory."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import redis as redis_py
import sqlalchemy as sa

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.lines import retention
from benchmarks.lines.drain import FROM, TO, drained
from benchmarks.plan import Plan, say
from benchmarks.programs import ledger_pages
from benchmarks.session import session
from benchmarks.tables import Requirement, Table
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade

COUNTS = (1000, 10_000, 100_000, 1_000_000)
WITHIN = 0.8
"""How much of the rate of ten thousand a longer queue must keep."""
ROWS = {"PostgreSQL": (10_000, 100_000, 1_000_000, 10_000_000), "SQLite": (10_000, 100_000, 1_000_000)}
DRAINED = 20_000
MOST_COST = 1.25
"""Processor time of a job next to more rows, relative to that next to ten thousand, at most."""


def redis(plan: Plan) -> list[Table]:
    rates = Table("No-op jobs drained off queues of different lengths, Redis, Dramatiq engine", "jobs/s")
    sizes = Table("Redis memory of one waiting job", "bytes", more_is_better=False)
    counts = [count for count in COUNTS if count <= plan.jobs(COUNTS[-1])]
    rates.requirements = [Requirement(_name(count), _name(10_000), WITHIN) for count in counts if count > 10_000]
    entrant = who.ours("dramatiq")
    for _ in range(plan.rounds):
        for count in counts:
            with session(plan.servers, entrant, capacity=count + 100) as running:
                with redis_py.Redis.from_url(plan.servers.redis.url) as client:
                    before = client.info("memory")["used_memory"]
                    running.send("fill", count)
                    sizes.add(_name(count), (client.info("memory")["used_memory"] - before) / count, peer=False)
                running.start_worker()
                running.wait_for(count)
                stamps = running.stamps.read()
                first, last = stamps[int(count * FROM)][1], stamps[int(count * TO)][1]
                rate = (int(count * TO) - int(count * FROM)) / ((last - first) / 1e9)
                rates.add(_name(count), rate, peer=False)
    return [rates, sizes]


def _name(count: int) -> str:
    return f"{count:,} waiting"


def ledgers(plan: Plan) -> list[Table]:
    """Each ledger is filled once; a round adds the jobs that it drains."""
    costs = Table("Processor time of a no-op next to rows in its ledger, of worker and PostgreSQL", "µs/job", False)
    rates = Table("No-op jobs drained next to rows in their ledger, Redis, Dramatiq engine", "jobs/s")
    most = plan.rows if plan.scale == 1.0 else min(plan.rows, 100_000)
    contestants: list[Entrant] = []
    with ExitStack() as stack:
        for ledger, sizes in ROWS.items():
            if ledger == "PostgreSQL" and not plan.servers.has_postgres:
                continue
            names = [f"{ledger}, {rows:,} rows" for rows in sizes if rows <= most]
            costs.requirements += [Requirement(name, names[0], MOST_COST) for name in names[1:]]
            rates.compared += [(name, names[0]) for name in names[1:]]
            for name, rows in zip(names, sizes, strict=False):
                if ledger == "SQLite":
                    url = f"sqlite:///{plan.servers.folder}/{rows}.db"
                else:
                    url = stack.enter_context(plan.servers.another_database())
                say(f"growth: {name} are inserted")
                _fill(url, rows)
                entrant = who.ours("dramatiq", ledger=ledger, task="tracked", jobs=DRAINED)
                environment = {**entrant.environment, "BENCH_LEDGER_URL": url}
                contestants.append(replace(entrant, name=name, environment=environment))

        def measure(entrant: Entrant) -> None:
            rate, cpu = drained(plan, entrant, plan.jobs(entrant.jobs), broker="redis", server=True)
            costs.add(entrant.name, cpu, peer=False)
            rates.add(entrant.name, rate, peer=False)

        plan.rounds_of(contestants, measure)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    costs.notes.append(f"a round adds {plan.jobs(DRAINED):,} rows to each; load at the end: {load}")
    return [costs, rates]


def _fill(url: str, rows: int) -> None:
    """Jobs of the last 30 days: of all sorts on PostgreSQL, that have succeeded on SQLite."""
    database = Database(url)
    try:
        upgrade(database)
        if database.dialect == "sqlite":
            days = timedelta(days=30)
            retention.fill(database, rows, datetime.now(UTC) - days, days / rows)
            return
        ledger_pages.fill(database, rows)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("CHECKPOINT"))  # else its writing falls into the drains
    finally:
        database.close()
