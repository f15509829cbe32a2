"""Throughput: a full queue, one worker, from the first fifth of the jobs to the last tenth.

Measured between two points of the run, not from its start to its end: starting up is left out, and jobs that ran but
are not yet recorded or acknowledged are about as many at both points.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.plan import Plan
from benchmarks.session import BenchError, session
from benchmarks.tables import BEST_PEER, Requirement, Table

FROM, TO = 0.2, 0.9
ENGINES = ("dramatiq", "celery")


def drained(
    plan: Plan,
    entrant: Entrant,
    count: int,
    *,
    broker: str,
    task: str = "noop",
    workers: int = 1,
    server: bool = False,
) -> tuple[float, float]:
    """Jobs a second, and processor microseconds a job.

    Arguments:
        server: these include those of the ledger's server.
    """
    with session(plan.servers, entrant, broker=broker, task=task, capacity=count + 100) as running:
        running.send("fill", count)
        for _ in range(workers):
            running.start_worker()
        running.wait_for(int(count * FROM), pause=0.005)
        cpu, done = running.cpu_seconds(server=server), running.stamps.count()
        running.wait_for(count)
        cpu, done = running.cpu_seconds(server=server) - cpu, count - done
        stamps = running.stamps.read()
        if len({number for number, _ in stamps}) < count:
            raise BenchError(f"{entrant.name} lost jobs")
        first, last = stamps[int(count * FROM)][1], stamps[int(count * TO)][1]
        return (int(count * TO) - int(count * FROM)) / ((last - first) / 1e9), cpu / done * 1e6 if done else 0.0


def run(plan: Plan, table: Table, contestants: Sequence[Entrant], *, broker: str, task: str = "noop") -> Table:
    def measure(entrant: Entrant) -> None:
        rate, cpu = drained(plan, entrant, plan.jobs(entrant.jobs), broker=broker, task=task)
        table.add(entrant.name, rate, peer=not entrant.is_ours, cpu=cpu)

    plan.rounds_of(plan.available(contestants), measure)
    return table


def redis(plan: Plan) -> Table:
    table = Table("No-op jobs drained, Redis, one worker process", "jobs/s")
    table.requirements = [
        Requirement("Penstock Dramatiq", BEST_PEER, 4.0),
        Requirement("Penstock Dramatiq, ledger on SQLite", BEST_PEER, 2.5),
        Requirement("Penstock Dramatiq, ledger on PostgreSQL", BEST_PEER, 2.0),
        Requirement("Penstock Celery", "Celery, solo", 3.0),
        Requirement("Penstock Celery", BEST_PEER, 1.0),
    ]
    return run(plan, table, redis_entrants(), broker="redis")


def redis_entrants() -> list[Entrant]:
    return [
        who.ours("dramatiq", concurrency=500),
        who.celery("solo", 1),
        who.ours("celery", concurrency=500),
        who.taskiq("list"),
        who.ours("dramatiq", concurrency=500, ledger="SQLite", task="tracked", jobs=15_000),
        who.celery("prefork", 2),
        who.dramatiq(8),
        who.ours("celery", concurrency=500, ledger="SQLite", task="tracked", jobs=15_000),
        who.taskiq("stream"),
        who.huey(8),
        who.huey(1),
        who.ours("dramatiq", concurrency=500, ledger="PostgreSQL", task="tracked", jobs=15_000),
        who.celery("threads", 8),
        who.saq(10),
        who.ours("celery", concurrency=500, ledger="PostgreSQL", task="tracked", jobs=15_000),
        who.dramatiq(1),
        who.arq(100),
        who.streaq(100),
        who.rq(),
        who.tarsk(100),
        who.ardiq(100),
        who.mayu(1),
        who.mayu(100),
    ]


def at_ordinary_settings(plan: Plan) -> list[Table]:
    """The same at the numbers that people set: 10 and 100 at a time, next to 500."""
    return [_at(plan, 10), _at(plan, 100)]


def _at(plan: Plan, slots: int) -> Table:
    table = Table(f"No-op jobs drained, Redis, one worker process, {slots} at a time", "jobs/s")
    table.requirements = [
        Requirement("Penstock Dramatiq", BEST_PEER, 2.0),
        Requirement("Penstock Dramatiq, ledger on SQLite", BEST_PEER, 1.0),
        Requirement("Penstock Dramatiq, ledger on PostgreSQL", BEST_PEER, 0.9),
        Requirement("Penstock Celery", "Penstock Dramatiq", 0.95),
        Requirement("Penstock Celery, ledger on SQLite", "Penstock Dramatiq, ledger on SQLite", 0.95),
        Requirement("Penstock Celery, ledger on PostgreSQL", "Penstock Dramatiq, ledger on PostgreSQL", 0.95),
    ]
    contestants = [who.huey(8), who.taskiq("list", tasks=slots), who.saq(slots), who.celery("threads", slots)]
    contestants += [who.tarsk(slots), who.ardiq(slots), who.mayu(slots)]
    contestants.append(who.on_newest_python(who.ours("dramatiq", concurrency=slots)))
    for ledger in ("", "SQLite", "PostgreSQL"):
        task, jobs = ("tracked", 15_000) if ledger else ("noop", 30_000)
        contestants += [who.ours(engine, concurrency=slots, ledger=ledger, task=task, jobs=jobs) for engine in ENGINES]
    return run(plan, table, contestants, broker="redis")


def rabbitmq(plan: Plan) -> Table:
    table = Table("No-op jobs drained, RabbitMQ, one worker process", "jobs/s")
    table.requirements = [
        Requirement("Penstock Celery", "Celery, solo", 1.2),
        Requirement("Penstock Dramatiq", "Dramatiq, 8 threads", 1.2),
    ]
    contestants = [
        who.ours("dramatiq", jobs=15_000),
        who.celery("solo", 1, jobs=8000),
        who.ours("celery", jobs=15_000),
        who.dramatiq(8, jobs=8000),
        who.taskiq("RabbitMQ"),
        who.celery("prefork", 2, jobs=8000),
        who.faststream(100),
    ]
    if plan.servers.amqp_url is None:
        table.notes.append("RabbitMQ is not reachable")
        return table
    return run(plan, table, contestants, broker="rabbitmq")


def waiting(plan: Plan) -> Table:
    """50 ms of asynchronous waiting a job: the throughput of a worker that mostly waits for others."""
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
        who.tarsk(1000, jobs=8000),
        who.ardiq(1000, jobs=12_000),
        who.mayu(200, jobs=9000),
    ]
    return run(plan, table, contestants, broker="redis", task="sleep")
