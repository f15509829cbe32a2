"""50 ms of asynchronous waiting a job: what a worker that mostly waits for others gets done."""

from __future__ import annotations

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.lines.drain import run
from benchmarks.plan import Plan
from benchmarks.tables import BEST_PEER, Requirement, Table


def redis(plan: Plan) -> Table:
    table = Table("Jobs that wait 50 ms, Redis, one worker process, 1,000 at a time or its best", "jobs/s")
    table.requirements = [
        Requirement("Penstock Dramatiq", BEST_PEER, 2.0),
        Requirement("Penstock Celery", BEST_PEER, 1.0),
    ]
    contestants: list[Entrant] = [
        who.ours("dramatiq", concurrency=1000, jobs=25_000),
        who.taskiq("list", jobs=9000),
        who.ours("celery", concurrency=1000, jobs=25_000),
        who.taskiq("stream", jobs=9000),
        who.saq(1000, jobs=6000),
        who.arq(1000, jobs=4000),
        who.dramatiq(200, jobs=6000),
        who.huey(200, jobs=6000),
        who.streaq(1000, jobs=4000),
        who.celery("threads", 100, jobs=3000),
    ]
    return run(plan, table, contestants, broker="redis", task="sleep")
