"""The footprint: an idle worker's memory, two worker processes, and the import that every web backend pays."""

from __future__ import annotations

import subprocess
import time

from benchmarks import entrants as who
from benchmarks.entrants import Entrant
from benchmarks.plan import Plan
from benchmarks.session import session
from benchmarks.tables import Requirement, Table

_TIMED = "import time; begin = time.process_time(); {}; print(time.process_time() - begin)"


def memory(plan: Plan) -> Table:
    table = Table("Memory of an idle worker after ten jobs, all its processes (PSS)", "MiB", more_is_better=False)
    table.requirements = [Requirement(f"Penstock {name}", "Celery, solo", 1.0) for name in ("Dramatiq", "Celery")]
    table.limits = {"Penstock Dramatiq": 48.0, "Penstock Celery": 60.0}
    contestants = [
        who.ours("dramatiq"),
        who.celery("solo", 1),
        who.ours("celery"),
        *(who.ours(engine, processes=number) for engine in ("dramatiq", "celery") for number in (2, 3)),
        who.celery("prefork", 2),
        who.dramatiq(8),
        who.taskiq("list"),
        who.saq(10),
        who.arq(100),
        who.huey(8),
        who.streaq(100),
        who.rq(),
        who.tarsk(10),
        who.ardiq(10),
        who.mayu(10),
    ]

    def measure(entrant: Entrant) -> None:
        with session(plan.servers, entrant) as running:
            running.start_worker()
            running.send("fill", 10)
            running.wait_for(10)
            time.sleep(1.0)
            table.add(entrant.name, running.memory_mib(), peer=not entrant.is_ours)

    plan.rounds_of(plan.available(contestants), measure)
    for name in ("Penstock Dramatiq", "Penstock Celery"):
        two, three = (table.values.get(f"{name}, {number} processes", []) for number in (2, 3))
        if two and three:
            further = f"{name}, each further process"
            table.values[further] = [more - less for less, more in zip(two, three, strict=False)]
            table.limits[further] = 15.0
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
