"""The pool of processes: its dispatch next to Celery's prefork pool, and two processes against one."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.lines.drain import run
from benchmarks.plan import Plan
from benchmarks.tables import Requirement, Table

ENGINES = ("dramatiq", "celery")
_JOBS, _ROUNDS = 1000, 12_000
"""Jobs that compute, and what each does: some twenty milliseconds, so that a run takes ten seconds or more."""


def redis(plan: Plan) -> list[Table]:
    return [_dispatch(plan), _scaling(plan)]


def _dispatch(plan: Plan) -> Table:
    table = Table("No-op jobs drained by a pool of two processes, Redis", "jobs/s")
    contestants = [who.celery("prefork", 2)]
    for engine in ENGINES:
        for ledger, task in (("", "noop"), ("SQLite", "tracked")):
            contestants.append(entrant := who.ours(engine, ledger=ledger, task=task, pool=2, jobs=15_000))
            least = 2.0 if ledger else 3.0
            table.requirements.append(Requirement(entrant.name, "Celery, prefork 2", least))
    return run(plan, table, contestants, broker="redis")


def _scaling(plan: Plan) -> Table:
    """Jobs that compute: what the worker itself needs of the two cores is taken from the second process."""
    table = Table("Jobs that compute, by pools of two processes and of one, Redis", "jobs/s")
    pools = {engine: [_computing(engine, size) for size in (1, 2)] for engine in ENGINES}
    for single, double in pools.values():
        table.requirements.append(Requirement(double.name, single.name, 1.8))
    run(plan, table, [entrant for pool in pools.values() for entrant in pool], broker="redis")
    for single, _ in pools.values():
        if single.name in table.cpu:
            table.notes.append(f"{single.name}: {median(table.cpu[single.name]) / 1000:.1f} ms of processor time a job")
    return table


def _computing(engine: str, size: int) -> Entrant:
    entrant = who.ours(engine, task="compute", pool=size, jobs=_JOBS)
    return replace(entrant, environment={**entrant.environment, "BENCH_ROUNDS": str(_ROUNDS)})
