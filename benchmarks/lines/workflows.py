"""Workflows: how many steps a second go through one dispatcher, how long a fan-out takes to be sent, and whether a step
costs more the more of them a workflow has.

The ledger is PostgreSQL, the broker Redis; one `penstock dispatcher` and one `penstock worker` run, each a process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from benchmarks.apps.workflows import QUEUE, Chain, FanOut
from benchmarks.entrants import OURS, Entrant
from benchmarks.plan import Plan, say
from benchmarks.session import STALL_SECONDS, BenchError, Session, session
from benchmarks.tables import Requirement, Table
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.producers import Producer
from penstock.schemas.states import WAITING

CHAINS = 600
STEPS = 10
FAN_OUT = 10_000
SIZES = (100, 1000, 10_000, 100_000)
STEPS_PER_SECOND = 1000.0
FAN_OUT_SECONDS = 2.0
FLAT = 1.3
"""How much more a step may cost in the largest workflow than in one of a thousand."""


def _entrant(command: str) -> Entrant:
    words = (*command.split(), *["--import", "benchmarks.apps.workflows", "--log-level", "WARNING"])
    return Entrant("Penstock", "apps.ours", OURS, words, 0, {"BENCH_TASK": "noop", "BENCH_LEDGER": "PostgreSQL"})


WORKER = _entrant(f"penstock worker --engine dramatiq --queues {QUEUE} --concurrency 100")
DISPATCHER = _entrant("penstock dispatcher")


def postgres(plan: Plan) -> list[Table]:
    rates = Table(
        f"Workflows of {STEPS} steps in sequence, PostgreSQL and Redis, one dispatcher, one worker", "steps/s"
    )
    sending = Table(f"From the begin of a fan-out of {FAN_OUT:,} until all its jobs are sent, the same", "s", False)
    costs = Table("The dispatcher's processor time of a step, in one workflow of so many", "µs", False)
    if not plan.servers.has_postgres:
        return [rates, sending, costs]
    rates.notes = ["CPU is the dispatcher's"]
    rates.limits, sending.limits = {"steps": STEPS_PER_SECOND}, {"all sent": FAN_OUT_SECONDS}
    sizes = [size for size in SIZES if size <= plan.jobs(SIZES[-1])]
    costs.requirements = [Requirement(_name(size), _name(1000), FLAT) for size in sizes if size > 1000]
    for number in range(plan.rounds):
        try:
            say(f"round {number + 1}/{plan.rounds}: workflows")
            rate, cost = _chains(plan, plan.jobs(CHAINS))
            rates.add("steps", rate, peer=False, cpu=cost)
            for size in sizes:
                say(f"round {number + 1}/{plan.rounds}: a workflow of {size:,}")
                sent, cost = _fan_out(plan, size)
                costs.add(_name(size), cost, peer=False)
                if size == FAN_OUT:
                    sending.add("all sent", sent, peer=False)
        except BenchError as error:
            plan.errors.append(str(error))
            say(str(error))
    return [rates, sending, costs]


def _name(size: int) -> str:
    return f"{size:,} steps"


@contextmanager
def _running(plan: Plan) -> Iterator[tuple[Session, Database, Producer]]:
    with session(plan.servers, WORKER) as running:
        running.start_worker()
        running.entrant = DISPATCHER
        running.start_worker()
        database = Database(plan.servers.postgres_url)
        environment = running.environment
        producer = Producer(environment["PENSTOCK_BROKER_URL"], prefix=environment["PENSTOCK_PREFIX"])
        try:
            producer.enqueue(Chain(number=0))  # until that has ended, they are still starting
            _wait(database, 1)
            yield running, database, producer
        finally:
            producer.close()
            database.close()


def _chains(plan: Plan, count: int) -> tuple[float, float]:
    """Steps a second, and microseconds a step of the dispatcher's processor time."""
    with _running(plan) as (running, database, producer):
        began, before = time.perf_counter(), _cpu(running)
        producer.enqueue_many([Chain(number=number) for number in range(count)])
        _wait(database, 1 + count)
        rate = count * STEPS / (time.perf_counter() - began)
        return rate, (_cpu(running) - before) / (count * STEPS) * 1e6


def _fan_out(plan: Plan, size: int) -> tuple[float, float]:
    """Seconds until all is sent, and microseconds a step of the dispatcher's processor time."""
    with _running(plan) as (running, database, producer):
        before = _cpu(running)
        handle = producer.enqueue(FanOut(jobs=size))
        head = sa.select(steps.c.started_at).where(steps.c.workflow_id == handle.id, steps.c.step == "each")
        sent_steps = sa.and_(steps.c.workflow_id == handle.id, steps.c.number > 0, jobs.c.id == steps.c.job_id)
        sent = sa.select(sa.func.count()).where(sent_steps, jobs.c.state.not_in(WAITING))
        deadline = time.monotonic() + STALL_SECONDS + size / 200
        while _one(database, sent) < size:
            if time.monotonic() > deadline:
                raise BenchError(f"{_one(database, sent)} of {size} jobs of a fan-out are sent")
            time.sleep(0.01)
        began = _one(database, head.where(steps.c.number == 0))
        seconds = time.time() - began.timestamp()
        _wait(database, 2, size / 200)
        return seconds, (_cpu(running) - before) / size * 1e6


def _cpu(running: Session) -> float:
    """Processor seconds of the dispatcher, which was started last."""
    worker, running.workers = running.workers, running.workers[-1:]
    try:
        return running.cpu_seconds()
    finally:
        running.workers = worker


def _one(database: Database, select: sa.Select[tuple[object]]):  # type: ignore[no-untyped-def]
    return database.read(lambda connection: connection.execute(select).scalar())


def _wait(database: Database, count: int, seconds: float = 0.0) -> None:
    """Until so many workflows have succeeded; `seconds` more than usual may pass between two."""
    select = sa.select(sa.func.count()).select_from(workflows).where(workflows.c.state == "succeeded")
    before, deadline = 0, time.monotonic() + STALL_SECONDS
    while (done := _one(database, select)) < count:
        if done > before:
            before, deadline = done, time.monotonic() + STALL_SECONDS
        if time.monotonic() > deadline + seconds + count / 200:
            raise BenchError(f"{done} of {count} workflows have ended")
        time.sleep(0.02)
