"""Idle workers and an idle dispatcher: their statements, Redis commands and processor time; ledger on PostgreSQL."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import redis as redis_client
import sqlalchemy as sa

from benchmarks import entrants as who
from benchmarks.plan import Plan, say
from benchmarks.session import POSTGRES_URL, STALL_SECONDS, BenchError, Session, session
from benchmarks.tables import Table

_REST_SECONDS, _SECONDS = 20.0, 22.0
"""Between the last job and the count, in which rates are still written; and of the count, but for its last beat."""
_COMMITS = sa.text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = :name")


@dataclass(frozen=True)
class Counts:
    """Counts so far: transactions of the ledger's database, commands of Redis, and processor seconds."""

    at: float
    transactions: int
    commands: int
    cpu_seconds: float


def postgres(plan: Plan) -> list[Table]:
    tables = [
        Table("Transactions of an idle process, ledger on PostgreSQL", "1/s", more_is_better=False),
        Table("Redis commands of an idle process", "1/s", more_is_better=False),
        Table("Processor time of an idle process", "% of a core", more_is_better=False),
    ]
    if not plan.servers.has_postgres:
        return tables
    workers = {engine: who.ours(engine, ledger="PostgreSQL", concurrency=10) for engine in ("dramatiq", "celery")}
    command = ("penstock", "dispatcher", "--import", "benchmarks.apps.ours")
    processes = {f"worker, {engine.title()} engine": worker for engine, worker in workers.items()}
    processes["dispatcher"] = replace(workers["dramatiq"], name="dispatcher", worker=command)
    for number in range(plan.rounds):
        for broker in ("redis", "rabbitmq"):
            if broker == "rabbitmq" and plan.servers.amqp_url is None:
                continue
            for process, entrant in processes.items():
                name = f"{process}, {'Redis' if broker == 'redis' else 'RabbitMQ'}"
                if process != "dispatcher":
                    tables[0].limits[name], tables[1].limits[name] = 0.205, 3.0  # one in five seconds
                else:
                    tables[2].limits[name] = 1.0
                say(f"round {number + 1}/{plan.rounds}: idle {name}")
                with session(plan.servers, entrant, broker=broker) as running:
                    running.start_worker()
                    if process != "dispatcher":
                        running.send("fill", 10)
                        running.wait_for(10)
                    time.sleep(_REST_SECONDS)
                    before = _next_counts(plan, running)
                    time.sleep(_SECONDS)
                    after = _next_counts(plan, running)
                seconds = after.at - before.at
                tables[0].add(name, (after.transactions - before.transactions) / seconds, peer=False)
                tables[1].add(name, (after.commands - before.commands) / seconds, peer=False)
                tables[2].add(name, 100 * (after.cpu_seconds - before.cpu_seconds) / seconds, peer=False)
    return tables


def _next_counts(plan: Plan, running: Session) -> Counts:
    """The counts when there is one more transaction, since a rate is measured from one beat to another."""
    first = _counts(plan, running)
    while (counts := _counts(plan, running)).transactions == first.transactions:
        if counts.at - first.at > STALL_SECONDS:
            raise BenchError(f"{running.entrant.name} asks nothing of the ledger")
        time.sleep(0.1)
    return counts


def _counts(plan: Plan, running: Session) -> Counts:
    engine = sa.create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        name = sa.make_url(plan.servers.postgres_url).database
        transactions: int = connection.execute(_COMMITS, {"name": name}).scalar_one()
    with redis_client.Redis.from_url(plan.servers.redis.url) as client:
        by_command = client.info("commandstats")
    ours = ("cmdstat_info", "cmdstat_client")  # of this connection, whose client says its name
    commands = sum(each["calls"] for name, each in by_command.items() if not name.startswith(ours))
    return Counts(time.monotonic(), transactions, commands, running.cpu_seconds())
