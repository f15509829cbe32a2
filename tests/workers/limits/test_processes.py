"""Limits over worker processes of each engine, one of which is killed in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from limit_jobs import Noted
from support.ledgers import upgraded
from support.polling import until

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, workers
from penstock.producers import Producer
from penstock.producers.limits import open_store

pytestmark = pytest.mark.slow

PENSTOCK = Path(sys.executable).parent / "penstock"
JOBS, MOST, LEASE_SECONDS = 90, 3, 5.0


@pytest.fixture(params=[("celery", "redis"), ("dramatiq", "rabbitmq")], ids="-".join)
def pair(request: pytest.FixtureRequest, redis_url: str) -> tuple[str, str]:
    engine, broker = request.param
    return engine, redis_url if broker == "redis" else str(request.getfixturevalue("amqp_url"))


@pytest.fixture
def settings(pair: tuple[str, str], redis_url: str, prefix: str, tmp_path: Path) -> Settings:
    return Settings(
        broker_url=pair[1],
        limits_url=redis_url,
        database_url=f"sqlite:///{tmp_path}/ledger.db",
        prefix=prefix,
        lease_seconds=LEASE_SECONDS,
    )


@pytest.fixture
def processes(pair: tuple[str, str], settings: Settings, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A dispatcher and two workers, in this order."""
    engine, broker_url = pair
    upgraded(settings.database_url)
    env = os.environ | {
        "PENSTOCK_BROKER_URL": broker_url,
        "PENSTOCK_LIMITS_URL": str(settings.limits_url),
        "PENSTOCK_DATABASE_URL": settings.database_url,
        "PENSTOCK_STORAGE_URL": f"file:{tmp_path}/storage",
        "PENSTOCK_PREFIX": settings.prefix,
        "PENSTOCK_STOCK_QUEUES": "[]",
        "PENSTOCK_LEASE_SECONDS": str(LEASE_SECONDS),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    worker = ["worker", "--engine", engine, "--queues", "noted", "--concurrency", "10", "--import", "limit_jobs"]
    started: list[subprocess.Popen[bytes]] = []
    for words in (["dispatcher"], worker, worker):
        with (tmp_path / f"process-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen([PENSTOCK, *words], env=env, cwd=tmp_path, stdout=log, stderr=log)
        started.append(process)
    yield started
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for log in sorted(tmp_path.glob("*.log")):  # shown where the test fails
        print(f"== {log.name}\n{log.read_text()[-3000:]}")


def test_a_concurrency_limit_holds_although_a_worker_is_killed(
    processes: list[subprocess.Popen[bytes]], settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "noted"
    producer, database, store = Producer.from_settings(settings), Database(settings.database_url), open_store(settings)
    assert store is not None

    def lines() -> list[list[str]]:
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def ended() -> Counter[str]:
        """How many each process has."""
        return Counter(pid for what, pid, *_ in lines() if what == "ends")

    def count(of: sa.ColumnElement[bool]) -> int:
        return int(
            database.read(lambda connection: connection.execute(sa.select(sa.func.count()).where(of)).scalar_one())
        )

    held: list[int] = []

    def watched() -> None:
        [use] = store.uses(["limits.noted/concurrency:"])
        held.append(len(use.running) + len(use.woken))

    try:
        until(lambda: count(workers.c.engine != "dispatcher") == 2, "both workers")
        producer.enqueue_many([Noted(file=str(file), seconds=0.03) for _ in range(JOBS)])
        until(lambda: watched() or ended().total() >= 30, "thirty to end")
        [(busiest, _)] = ended().most_common(1)
        victim = next(process for process in processes if str(process.pid) == busiest)
        victim.kill()
        victim.wait()
        killed_at = time.monotonic()
        until(lambda: watched() or count(jobs.c.state == "succeeded") == JOBS, "the last one")
        until(lambda: watched() or held[-1] == 0, "every slot released")
    finally:
        producer.close()
        database.close()
        store.close()
    assert max(held) == MOST
    _no_more_at_a_time(lines(), str(victim.pid), killed_at)


def _no_more_at_a_time(lines: list[list[str]], killed: str, killed_at: float) -> None:
    """By the jobs' own times; the runs of the killed worker ended with it."""
    events = [(float(at), 1 if what == "begins" else -1) for what, _, _, at in lines]
    ended = {(pid, job_id) for what, pid, job_id, _ in lines if what == "ends"}
    cut_off = [pid for what, pid, job_id, _ in lines if what == "begins" and (pid, job_id) not in ended]
    assert set(cut_off) <= {killed}
    events += [(killed_at, -1)] * len(cut_off)
    now = 0
    for at, change in sorted(events):
        now += change
        assert now <= MOST, at
    assert now == 0
