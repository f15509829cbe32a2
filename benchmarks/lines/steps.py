"""Where Penstock's own time goes, step by step: the processor's with a full queue, and a lone job's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping

from benchmarks import entrants as who
from benchmarks.plan import Plan
from benchmarks.session import BenchError, Session, session
from benchmarks.tables import Table

LEDGERS = (("", "noop"), ("SQLite", "tracked"), ("PostgreSQL", "tracked"))


def redis(plan: Plan) -> list[Table]:
    def measure(running: Session) -> dict[str, float]:
        return profiled(running, "steps", plan.jobs(12_000))

    return _tables(plan, "Processor time by step, Redis", measure)


def way(plan: Plan) -> list[Table]:
    def measure(running: Session) -> dict[str, float]:
        count = plan.jobs(1000)
        process = _start(running, "way", count)
        running.send("paced", count)
        return _ended(process)

    return _tables(plan, "A lone job's way to its handler, 100 jobs/s, Redis", measure)


def profiled(
    running: Session, measure: str, count: int, variables: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Send so many jobs, and have a worker that is measured drain them."""
    running.send("fill", count)
    return _ended(_start(running, measure, count, variables))


def _tables(plan: Plan, title: str, measure: Callable[[Session], dict[str, float]]) -> list[Table]:
    tables = []
    for ledger, task in LEDGERS:
        table = Table(f"{title}, {f'ledger on {ledger}' if ledger else 'track=False'}", "µs/job", more_is_better=False)
        for contestant in plan.available([who.ours("dramatiq", ledger=ledger, task=task)]):
            for _ in range(plan.rounds):
                with session(plan.servers, contestant, capacity=plan.jobs(12_000) + 100) as running:
                    costs = measure(running)
                for step, cost in costs.items():
                    table.add(step, cost, peer=False)
            tables.append(table)
    return tables


def _start(
    running: Session, measure: str, count: int, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [str(who.OURS / "python"), "-m", "benchmarks.programs.profiled", measure, str(count)]
    return subprocess.Popen(
        command,
        env={**running.environment, **(variables or {})},
        cwd=running.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(process: subprocess.Popen[str]) -> dict[str, float]:
    try:
        out, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise BenchError("the profiled worker does not end") from None
    if process.returncode != 0:
        raise BenchError(f"the profiled worker failed: {errors[-800:]}")
    costs: dict[str, float] = json.loads(out.splitlines()[-1])
    return costs
