"""From just before the call that sends a job to its handler's end, at a hundred jobs a second, the worker else idle."""

from __future__ import annotations

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.plan import Plan
from benchmarks.session import session
from benchmarks.tables import BEST_PEER, Requirement, Table

WARM_UP = 50


def redis(plan: Plan) -> list[Table]:
    tables = [
        Table(f"Latency at 100 jobs/s, Redis, {name}", "ms", more_is_better=False)
        for name in ("median", "99th percentile")
    ]
    for table in tables:
        table.requirements = [Requirement(f"Penstock {name}", BEST_PEER, 1.0) for name in ("Dramatiq", "Celery")]
    tables[0].limits = {"Penstock Dramatiq, ledger on PostgreSQL": 1.0}
    contestants = [
        who.ours("dramatiq"),
        who.taskiq("stream"),
        who.ours("celery"),
        who.huey(8),
        who.ours("dramatiq", ledger="SQLite", task="tracked"),
        who.ours("dramatiq", ledger="PostgreSQL", task="tracked"),
        who.celery("solo", 1),
        who.dramatiq(8),
        who.taskiq("list"),
        who.saq(10),
        who.arq(100),
        who.streaq(100),
        who.rq(),
        who.tarsk(10),
        who.ardiq(10),
        who.mayu(10),
    ]

    def measure(entrant: Entrant) -> None:
        count = plan.jobs(1000)
        with session(plan.servers, entrant) as running:
            running.start_worker()
            running.send("fill", WARM_UP)
            running.wait_for(WARM_UP)
            running.send("paced", count)
            running.wait_for(WARM_UP + count)
            # Of the warm-up the number is a number, not a time.
            waits = sorted((now - sent) / 1e6 for sent, now in running.stamps.read() if sent > 1_000_000)
            for table, share in zip(tables, (0.5, 0.99), strict=True):
                table.add(entrant.name, waits[int(len(waits) * share)], peer=not entrant.is_ours)

    plan.rounds_of(plan.available(contestants), measure)
    return tables
