"""A stock Celery application, drained by Celery's own worker and by ours, which has a ledger."""

from __future__ import annotations

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.lines.drain import run
from benchmarks.plan import Plan
from benchmarks.tables import Requirement, Table

LEDGERS = ("SQLite", "PostgreSQL")


def redis(plan: Plan) -> list[Table]:
    title = "Adopted no-op tasks drained, Redis, {}"
    return [
        _drained(plan, title.format("threads"), who.celery("solo", 1), "threads", 3.0),
        _drained(plan, title.format("two processes"), who.celery("prefork", 2), "processes", 2.0),
    ]


def _drained(plan: Plan, title: str, stock: Entrant, pool: str, least: float) -> Table:
    table = Table(title, "jobs/s")
    ours = [who.adopted(pool, ledger) for ledger in LEDGERS]
    table.requirements = [Requirement(entrant.name, stock.name, least) for entrant in ours]
    return run(plan, table, [stock, *ours], broker="redis")
