"""The footprint: an idle worker's memory, what its metrics cost, and the import that every web backend pays."""

from __future__ import annotations

import dataclasses
import subprocess
import time
import urllib.request

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.plan import Plan
from benchmarks.session import session
from benchmarks.tables import Requirement, Table
from penstock.workers.local.up.redis_server import free_port

WITH, WITHOUT = "with metrics", "without"
_TIMED = "import time; begin = time.process_time(); {}; print(time.process_time() - begin)"


def memory(plan: Plan) -> Table:
    table = Table("Memory of an idle worker after ten jobs, all its processes (PSS)", "MiB", more_is_better=False)
    table.requirements = [Requirement(f"Penstock {name}", "Celery, solo", 1.0) for name in ("Dramatiq", "Celery")]
    contestants = [
        who.ours("dramatiq"),
        who.celery("solo", 1),
        who.ours("celery"),
        who.celery("prefork", 2),
        who.dramatiq(8),
        who.taskiq("list"),
        who.saq(10),
        who.arq(100),
        who.huey(8),
        who.streaq(100),
        who.rq(),
    ]

    def measure(entrant: Entrant) -> None:
        with session(plan.servers, entrant) as running:
            running.start_worker()
            running.send("fill", 10)
            running.wait_for(10)
            time.sleep(1.0)
            table.add(entrant.name, running.memory_mib(), peer=not entrant.is_ours)

    plan.rounds_of(plan.available(contestants), measure)
    return table


def imports(plan: Plan) -> Table:
    # Processor time: with the files in memory it is what an idle machine would take.
    table = Table("Import of what a web backend needs to enqueue", "s", more_is_better=False)
    table.limits = {"penstock.producers": 0.15}
    modules = {
        "penstock.producers": who.OURS,
        "celery, Celery": who.NEWEST,
        "dramatiq": who.NEWEST,
        "taskiq": who.NEWEST,
        "huey": who.NEWEST,
        "rq": who.NEWEST,
        "streaq": who.NEWEST,
        "saq": who.REDIS5,
        "arq": who.REDIS5,
    }
    for _ in range(plan.rounds):
        for module, folder in modules.items():
            if (folder / "python").exists():
                # Celery's package loads its parts when they are named.
                code = "from celery import Celery" if module.startswith("celery") else f"import {module}"
                command = [folder / "python", "-c", _TIMED.format(code)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
                table.add(module, float(done.stdout), peer=module != "penstock.producers")
    return table


def scaling(plan: Plan) -> Table:
    """Two worker processes against one, of the same engine: jobs that compute for half a millisecond or so, and no-ops,
    of which Redis on the same cores takes its share."""
    from benchmarks.lines.drain import drained

    table = Table("Jobs drained by two worker processes and by one, Redis", "jobs/s")
    contestants = [
        who.ours(engine, task=task, jobs=jobs)
        for engine in ("dramatiq", "celery")
        for task, jobs in (("noop", 40_000), ("compute", 4000))
    ]
    names = {entrant: f"{entrant.name}, {entrant.environment['BENCH_TASK']}" for entrant in contestants}
    for name in names.values():
        table.requirements.append(Requirement(f"{name}, two processes", f"{name}, one process", 1.6))

    def measure(entrant: Entrant) -> None:
        for label, workers in (("one process", 1), ("two processes", 2)):
            rate, cpu = drained(plan, entrant, plan.jobs(entrant.jobs), broker="redis", workers=workers)
            table.add(f"{names[entrant]}, {label}", rate, peer=False, cpu=cpu)

    plan.rounds_of(plan.available(contestants), measure)
    return table


def metrics(plan: Plan) -> list[Table]:
    """The cost of metrics to a worker: its throughput and its memory, with a port for them and without."""
    return [_metrics_drain(plan), _metrics_memory(plan)]


def _pairs() -> list[tuple[Entrant, str]]:
    """Each worker without metrics and with them, one after the other."""
    pairs = []
    for engine in ("dramatiq", "celery"):
        off = who.ours(engine, concurrency=500)
        on = dataclasses.replace(off, environment=off.environment | {"PENSTOCK_HTTP_PORT": str(free_port())})
        pairs += [(off, f"{off.name}, {WITHOUT}"), (on, f"{off.name}, {WITH}")]
    return pairs


def _metrics_drain(plan: Plan) -> Table:
    from benchmarks.lines.drain import drained

    table = Table("No-op jobs drained, Redis, with a port for metrics and without", "jobs/s")
    pairs = _pairs()
    names = {id(entrant): name for entrant, name in pairs}
    for engine in ("Dramatiq", "Celery"):
        table.requirements.append(Requirement(f"Penstock {engine}, {WITH}", f"Penstock {engine}, {WITHOUT}", 0.98))

    def measure(entrant: Entrant) -> None:
        rate, cpu = drained(plan, entrant, plan.jobs(entrant.jobs), broker="redis")
        table.add(names[id(entrant)], rate, peer=False, cpu=cpu)

    plan.rounds_of([entrant for entrant, _ in pairs], measure)
    return table


def _metrics_memory(plan: Plan) -> Table:
    table = Table(
        "Memory of an idle worker after a thousand jobs, with metrics, scraped, and without (PSS)",
        "MiB",
        more_is_better=False,
    )
    pairs = _pairs()
    names = {id(entrant): name for entrant, name in pairs}

    def measure(entrant: Entrant) -> None:
        with session(plan.servers, entrant) as running:
            running.start_worker()
            running.send("fill", 1000)
            running.wait_for(1000)
            if (port := entrant.environment.get("PENSTOCK_HTTP_PORT")) is not None:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
            time.sleep(1.0)
            table.add(names[id(entrant)], running.memory_mib(), peer=False)

    plan.rounds_of([entrant for entrant, _ in pairs], measure)
    return table
