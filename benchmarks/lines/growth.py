"""Whether a longer queue is slower, and what a waiting job takes of Redis's memory."""

from __future__ import annotations

import redis as redis_py

from benchmarks import entrants as who
from benchmarks.lines.drain import FROM, TO
from benchmarks.plan import Plan
from benchmarks.session import session
from benchmarks.tables import Requirement, Table

COUNTS = (1000, 10_000, 100_000, 1_000_000)
WITHIN = 0.8
"""How much of the rate of ten thousand a longer queue must keep."""


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
