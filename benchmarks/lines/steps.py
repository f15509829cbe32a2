"""Where Penstock's own time goes, step by step."""

from __future__ import annotations

import json
import subprocess

from benchmarks import entrants as who
from benchmarks.plan import Plan
from benchmarks.running import BenchError, session
from benchmarks.tables import Table


def redis(plan: Plan) -> list[Table]:
    tables = []
    for ledger, task in (("", "noop"), ("SQLite", "tracked"), ("PostgreSQL", "tracked")):
        entrant = who.ours("dramatiq", ledger=ledger, task=task, concurrency=500)
        title = "Processor time by step, Redis, " + (f"ledger on {ledger}" if ledger else "track=False")
        table = Table(title, "µs/job", more_is_better=False)
        for contestant in plan.available([entrant]):
            for _ in range(plan.rounds):
                count = plan.jobs(12_000)
                with session(plan.servers, contestant, capacity=count + 100) as running:
                    running.send("fill", count)
                    done = subprocess.run(
                        [who.OURS / "python", "-m", "benchmarks.profiled", str(count)],
                        env=running.environment,
                        cwd=running.folder,
                        capture_output=True,
                        text=True,
                        timeout=300,
                    )
                    if done.returncode != 0:
                        raise BenchError(f"the profiled worker failed: {done.stderr[-800:]}")
                for step, cost in json.loads(done.stdout.splitlines()[-1]).items():
                    table.add(step, cost, peer=False)
            tables.append(table)
    return tables
