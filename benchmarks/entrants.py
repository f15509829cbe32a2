"""The contestants and their settings: each as its own documentation recommends for many short jobs; where there was a
choice, the fastest one here. `docs/benchmarks.md` explains them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent
OURS = Path(sys.executable).parent
VENVS = ROOT / ".venv-bench"
NEWEST, REDIS5 = VENVS / "newest" / "bin", VENVS / "redis5" / "bin"


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
        return self.app == "apps.ours"


def ours(engine: str, *, ledger: str = "", task: str = "noop", concurrency: int = 100, jobs: int = 30_000) -> Entrant:
    name = f"Penstock {engine.title()}" + (f", ledger on {ledger}" if ledger else "")
    return Entrant(
        name,
        "apps.ours",
        OURS,
        (
            *f"penstock worker --engine {engine} --queues bench --concurrency {concurrency}".split(),
            *("--import", "benchmarks.apps.ours", "--log-level", "WARNING"),
        ),
        jobs,
        {"BENCH_TASK": task, "BENCH_LEDGER": ledger},
    )


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


def faststream(concurrency: int, jobs: int = 9000) -> Entrant:
    environment = {"BENCH_CONCURRENCY": str(concurrency)}
    command = ("faststream", "run", "benchmarks.peers.faststream_app:app", "--log-level", "warning")
    return Entrant(f"FastStream, prefetch {concurrency}", "peers.faststream_app", NEWEST, command, jobs, environment)


BARE = Entrant("redis-py XADD", "apps.bare", OURS)
BARE_HIREDIS = Entrant("redis-py XADD with hiredis", "apps.bare", NEWEST)
