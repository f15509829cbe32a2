"""Telemetry: the cost to a worker of its metrics, of the ledger's rates, and of tracing where nothing is sampled."""

from __future__ import annotations

import dataclasses
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.lines.steps import profiled
from benchmarks.plan import Plan
from benchmarks.programs.profiled import DRAIN
from benchmarks.session import Session, session
from benchmarks.tables import Requirement, Table
from penstock.workers.local.up.redis_server import free_port

JOBS = 60_000
LEDGERS = (("", "noop"), ("SQLite", "tracked"), ("PostgreSQL", "tracked"))
PORT = {"PENSTOCK_HTTP_PORT": "1"}
"""A worker with it counts for `/metrics`. Its host, which would listen there, is left out."""


def metrics(plan: Plan) -> list[Table]:
    """The cost of counting for `/metrics` to a worker: processor time, and memory."""
    table = _table("that metrics add, track=False", {"metrics add": 0.02})

    def measure(running: Session, count: int) -> dict[str, float]:
        without = profiled(running, "counting", count)
        cost = profiled(running, "counting", count, PORT)
        return {"metrics add": cost["counting"] - without["counting"], DRAIN: without[DRAIN]}

    _measure(plan, table, measure)
    return [table, _metrics_memory(plan)]


def rates(plan: Plan) -> list[Table]:
    """The cost of counting the rates of the ledger to a worker."""
    tables = []
    for ledger, task in LEDGERS:
        table = _table(f"of counting rates, {f'ledger on {ledger}' if ledger else 'track=False'}", {"counting": 0.02})
        _measure(plan, table, partial(profiled, measure="counting"), ledger=ledger, task=task)
        tables.append(table)
    return tables


def traces(plan: Plan) -> list[Table]:
    """The cost of OpenTelemetry's SDK to jobs that carry the traceparent of a request that was not sampled."""
    samplers = ("always_off", "parentbased_always_on")
    table = _table("that traces add which are not sampled, track=False", {f"{name} adds": 0.01 for name in samplers})
    _measure(plan, table, partial(profiled, measure="spans"))
    return [table]


def _table(title: str, limits: Mapping[str, float]) -> Table:
    """Arguments:
    limits: the most that a row may be, as a share of the whole worker's processor time.
    """
    table = Table(f"Processor time {title}, Redis", "µs/job", more_is_better=False)
    table.requirements = [Requirement(name, DRAIN, limit) for name, limit in limits.items()]
    table.notes.append(
        "what is added is timed by itself, in the thread that does it: the time of a whole drain varies more than that"
    )
    return table


def _measure(
    plan: Plan,
    table: Table,
    measure: Callable[..., dict[str, float]],
    *,
    ledger: str = "",
    task: str = "noop",
) -> None:
    count = plan.jobs(JOBS)
    worker = who.ours("dramatiq", concurrency=500, ledger=ledger, task=task, jobs=JOBS)

    def measured(entrant: Entrant) -> None:
        with session(plan.servers, entrant, capacity=2 * count + 100) as running:
            for name, value in measure(running, count=count).items():
                table.add(name, value, peer=False)

    plan.rounds_of(plan.available([worker]), measured)


def _metrics_memory(plan: Plan) -> Table:
    table = Table(
        "Memory of an idle worker after a thousand jobs, with metrics, scraped, and without (PSS)",
        "MiB",
        more_is_better=False,
    )

    def measure(entrant: Entrant) -> None:
        with session(plan.servers, entrant) as running:
            running.start_worker()
            running.send("fill", 1000)
            running.wait_for(1000)
            if (port := entrant.environment.get("PENSTOCK_HTTP_PORT")) is not None:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
            time.sleep(1.0)
            table.add(entrant.name, running.memory_mib(), peer=False)

    workers = [who.ours(engine, concurrency=500) for engine in ("dramatiq", "celery")]
    ports: dict[str, dict[str, str]] = {"without": {}, "with metrics": {"PENSTOCK_HTTP_PORT": str(free_port())}}
    entrants = [
        dataclasses.replace(worker, name=f"{worker.name}, {name}", environment={**worker.environment, **variables})
        for worker in workers
        for name, variables in ports.items()
    ]
    plan.rounds_of(entrants, measure)
    return table
