"""The contestants and their settings: each as its own documentation recommends for many short jobs; where there was a
choice, the fastest one here. `docs/benchmarks.md` explains them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from infra import pythons

ROOT = Path(__file__).resolve().parent.parent
OURS = Path(sys.executable).parent
VENVS = ROOT / ".venv-bench"
NEWEST, REDIS5, NEWEST_PYTHON = (VENVS / name / "bin" for name in ("newest", "redis5", "newest-python"))


@functools.cache
def newest_python() -> tuple[str, Path]:
    """Version and path of the newest supported Python of this machine; ours, where none is newer."""
    ours = "{}.{}".format(*sys.version_info)
    for version in pythons.SUPPORTED[: pythons.SUPPORTED.index(ours) : -1]:
        if python := pythons.find(version):
            return version, python
    return ours, Path(sys.executable)


@dataclass(frozen=True)
class Entrant:
    """A contestant with one setting.

    Attributes:
        app: its module in `benchmarks`.
        bin: the `bin` folder of the environment it is installed in.
        worker: its worker's command, without that folder.
        jobs: how many no-op jobs one run drains: about three seconds' worth.
        environment: for its worker and its sender.
    """

    name: str
    app: str
    bin: Path
    worker: tuple[str, ...] = ()
    jobs: int = 5000
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def is_ours(self) -> bool:
        return self.app in ("apps.ours", "apps.adopted")


def ours(
    engine: str,
    *,
    ledger: str = "",
    task: str = "noop",
    concurrency: int = 100,
    jobs: int = 30_000,
    processes: int = 1,
    pool: int = 0,
) -> Entrant:
    name = f"Penstock {engine.title()}" + (f", ledger on {ledger}" if ledger else "")
    name += f", {processes} processes" if processes > 1 else ""
    environment = {"BENCH_TASK": task, "BENCH_LEDGER": ledger}
    if pool:
        name, concurrency = f"{name}, pool of {pool}", pool
        environment["PENSTOCK_POOL"] = "processes"
    return Entrant(
        name,
        "apps.ours",
        OURS,
        (
            *f"penstock worker --engine {engine} --queues bench --concurrency {concurrency}".split(),
            *(f"--processes {processes}".split() if processes > 1 else ()),
            *("--import", "benchmarks.apps.ours", "--log-level", "WARNING"),
        ),
        jobs,
        environment,
    )


def adopted(pool: str, ledger: str) -> Entrant:
    """Our worker for the tasks of `peers.celery_app`: two processes, or as many threads as by default."""
    command = f"penstock worker --celery benchmarks.peers.celery_app --queues bench --pool {pool} --log-level WARNING"
    if pool == "processes":
        command += " --concurrency 2"
    name = f"Penstock, {pool}, ledger on {ledger}"
    jobs = 15_000 if pool == "threads" else 8000
    return Entrant(name, "apps.adopted", OURS, tuple(command.split()), jobs, {"BENCH_LEDGER": ledger})


def on_newest_python(entrant: Entrant) -> Entrant:
    """A row of ours on the Python of the peers that need a newer one; left out if there is none."""
    version, _ = newest_python()
    return replace(entrant, name=f"{entrant.name}, Python {version}", bin=ROOT / f".venv-{version}" / "bin")


def celery(pool: str, concurrency: int, jobs: int = 4000) -> Entrant:
    label = {"solo": "solo", "prefork": f"prefork {concurrency}", "threads": f"{concurrency} threads"}[pool]
    return Entrant(
        f"Celery, {label}",
        "peers.celery_app",
        NEWEST,
        (
            *f"celery -A benchmarks.peers.celery_app worker -P {pool} -c {concurrency} -l WARNING -Q bench".split(),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        jobs,
    )


def dramatiq(threads: int, jobs: int = 6000, *, confirms: bool = True) -> Entrant:
    command = ("dramatiq", "benchmarks.peers.dramatiq_app", "-p", "1", "-t", str(threads), "--skip-logging")
    environment = {"BENCH_CONFIRMS": "yes" if confirms else ""}
    return Entrant(f"Dramatiq, {threads} threads", "peers.dramatiq_app", NEWEST, command, jobs, environment)


def taskiq(variant: str, tasks: int = 1000, jobs: int = 9000) -> Entrant:
    command = ("taskiq", "worker", "benchmarks.peers.taskiq_app:broker", "--workers", "1", "--log-level", "WARNING")
    command += ("--max-async-tasks", str(tasks), "--max-prefetch", "100", "--no-parse")
    return Entrant(f"Taskiq, {variant}", "peers.taskiq_app", NEWEST, command, jobs, {"BENCH_VARIANT": variant})


def saq(concurrency: int, jobs: int = 5000) -> Entrant:
    environment = {"BENCH_CONCURRENCY": str(concurrency)}
    command = ("saq", "benchmarks.peers.saq_app.settings", "--quiet")
    return Entrant(f"SAQ, {concurrency} at a time", "peers.saq_app", REDIS5, command, jobs, environment)


def arq(concurrency: int, jobs: int = 4000) -> Entrant:
    environment = {"BENCH_CONCURRENCY": str(concurrency)}
    command = ("arq", "--custom-log-dict", "benchmarks.peers.arq_app.quiet", "benchmarks.peers.arq_app.WorkerSettings")
    return Entrant(f"arq, {concurrency} at a time", "peers.arq_app", REDIS5, command, jobs, environment)


def huey(threads: int, jobs: int = 6000) -> Entrant:
    command = ("huey_consumer", "benchmarks.peers.huey_app.huey", "-k", "thread", "-w", str(threads), "-n", "-q")
    return Entrant(f"Huey, {threads} threads", "peers.huey_app", NEWEST, command, jobs)


def streaq(concurrency: int, jobs: int = 4000) -> Entrant:
    environment = {"BENCH_CONCURRENCY": str(concurrency)}
    command = ("streaq", "run", "benchmarks.peers.streaq_app:worker")
    return Entrant(f"streaQ, {concurrency} at a time", "peers.streaq_app", NEWEST, command, jobs, environment)


def rq(jobs: int = 1000) -> Entrant:
    command = ("python", "-m", "benchmarks.peers.rq_app")
    return Entrant("RQ, SimpleWorker", "peers.rq_app", NEWEST, command, jobs)


def tarsk(slots: int, jobs: int = 6000) -> Entrant:
    options = ("--queues", "bench", "--children", "1", "--slots", str(slots))
    command = ("tarsk", "worker", "--app", "benchmarks.peers.tarsk_app:app", *options)
    return Entrant(f"tarsk, {slots} slots", "peers.tarsk_app", NEWEST_PYTHON, command, jobs)


def ardiq(concurrency: int, jobs: int = 9000) -> Entrant:
    environment = {"BENCH_CONCURRENCY": str(concurrency)}
    command = ("ardiq", "run", "--quiet", "benchmarks.peers.ardiq_app:app")
    return Entrant(f"ArdiQ, {concurrency} at a time", "peers.ardiq_app", NEWEST_PYTHON, command, jobs, environment)


def mayu(threads: int, jobs: int = 20_000) -> Entrant:
    command = ("mayu", "worker", "benchmarks.peers.mayu_app:app", "--mode", "thread", "--threads", str(threads))
    # So many threads that each job is a switch between two gain nothing from more than its default of two a thread.
    prefetch = 500 // threads if threads <= 10 else 2
    command += ("--prefetch-multiplier", str(prefetch), "--log-level", "WARNING")
    name = "mayu, 1 thread" if threads == 1 else f"mayu, {threads} threads"
    return Entrant(name, "peers.mayu_app", NEWEST_PYTHON, command, jobs)


def faststream(concurrency: int, jobs: int = 9000) -> Entrant:
    environment = {"BENCH_CONCURRENCY": str(concurrency)}
    command = ("faststream", "run", "benchmarks.peers.faststream_app:app", "--log-level", "warning")
    return Entrant(f"FastStream, prefetch {concurrency}", "peers.faststream_app", NEWEST, command, jobs, environment)


BARE = Entrant("redis-py XADD", "apps.bare", OURS)
BARE_HIREDIS = Entrant("redis-py XADD with hiredis", "apps.bare", NEWEST)
