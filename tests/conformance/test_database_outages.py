"""A ledger that is unavailable in the middle of many jobs: none fails for it, none is lost, and the worker says so."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import outage_jobs
import pytest
import sqlalchemy as sa
from support.polling import until
from support.servers.databases import MariadbServer, PostgresServer
from support.stack import PAIRS, lines
from test_outages import Site, make_site, marks

from penstock.ledger.sql.tables import attempts, dead_letters, jobs
from penstock.workers.engines.worker import Worker

# pytest finds them by their names.
from test_outages import broker_url as broker_url  # isort: skip
from test_outages import running as running  # isort: skip

JOBS = int(os.environ.get("PENSTOCK_TEST_OUTAGE_JOBS", "1000"))
SECONDS = float(os.environ.get("PENSTOCK_TEST_OUTAGE_SECONDS", "5"))
"""Length of an outage. `PENSTOCK_TEST_OUTAGE_JOBS=5000 PENSTOCK_TEST_OUTAGE_SECONDS=30` makes it long."""
LOCK_SECONDS = max(13.0, SECONDS)
"""How long SQLite's lock is held: for longer than its busy timeout of 10 s."""
EVERY = 10
"""One in so many jobs writes with `ctx.session`."""

pytestmark = pytest.mark.slow
pairs = pytest.mark.parametrize("pair", PAIRS, ids="-".join)
Away = Callable[[], None]


@contextmanager
def stopped(server: PostgresServer | MariadbServer) -> Iterator[None]:
    server.stop()
    yield
    time.sleep(SECONDS)
    server.start()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    other = sqlite3.connect(file, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ends = time.monotonic() + LOCK_SECONDS
    yield
    time.sleep(max(ends - time.monotonic(), 0))
    other.execute("COMMIT")
    other.close()


@pairs
def test_postgresql_stopped_and_started_in_the_middle_of_many_jobs(
    pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    server = PostgresServer()
    try:
        server.start()
        site = make_site(pair, broker_url, tmp_path, running, database_url=server.url)
        survives(site, lambda: stopped(server), "thread" if pair[0] == "celery" else "async")
        site.stop()
    finally:
        server.close()


@pytest.mark.parametrize("pair", [PAIRS[1], PAIRS[2]], ids="-".join)
def test_mariadb_killed_and_started_in_the_middle_of_many_jobs(
    pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    server = MariadbServer(tmp_path / "mariadb")
    try:
        server.start()
        site = make_site(pair, broker_url, tmp_path, running, database_url=server.url)
        survives(site, lambda: stopped(server), "thread")
        site.stop()
    finally:
        server.close()


@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[3]], ids="-".join)
def test_sqlite_locked_for_longer_than_its_busy_timeout_in_the_middle_of_many_jobs(
    pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    site = make_site(pair, broker_url, tmp_path, running)
    survives(site, lambda: locked(tmp_path / "ledger.db"), "async")


def survives(site: Site, outage: Callable[[], object], mode: str) -> None:
    file, started = site.folder / "file", site.folder / "started"
    effect = outage_jobs.Open if mode == "async" else outage_jobs.OpenInThread
    plain, effects = JOBS - JOBS // EVERY, JOBS // EVERY
    seconds = 20 * 4.0 / JOBS  # so that twenty at a time take some seconds
    site.start_worker()
    idle = Worker(site.settings, engine=site.engine, queues=["idle"], concurrency=1)
    idle.start()
    try:
        until(lambda: idle.ready, "a ready worker")
        mixed = [*marks(file, plain, seconds=seconds)]
        # On SQLite an open transaction keeps out everybody else's.
        open_seconds = 0.01 if site.settings.database_url.startswith("sqlite") else 0.5
        mixed += [effect(number=number, file=str(started), seconds=open_seconds) for number in range(effects)]
        site.producer.enqueue_many(mixed[::EVERY] + [job for i, job in enumerate(mixed) if i % EVERY])
        until(lambda: len(lines(file)) > plain // 5 and lines(started), "some lines")
        with outage():  # type: ignore[attr-defined]
            until(lambda: not idle.ready, "a worker that says that its ledger is unavailable")
            assert idle.intake.alive  # it is the ledger, not the broker
            until(lambda: idle.executor.wait_for_capacity(0.1) <= 0, "a worker that fetches nothing")
            until(lambda: site.said("jobs are held until it is back"), "a log line")
            assert len(lines(file)) < plain
        until(lambda: idle.ready, "a worker that is ready again")
        site.all_succeed(JOBS)
    finally:
        idle.stop()
    assert sorted(lines(file), key=int) == [str(number) for number in range(plain)]
    assert site.effects() == dict.fromkeys(range(effects), 1)
    assert blemishes(site) == {}
    assert site.said("the ledger is back")


def blemishes(site: Site) -> Counter[str]:
    """Failed or crashed attempts, and dead letters. A run that the outage interrupted is none."""

    def count_failures(connection: sa.Connection) -> Counter[str]:
        counts = Counter(
            connection.scalars(sa.select(attempts.c.outcome).where(attempts.c.outcome != "interrupted")).all()
        )
        counts["dead letters"] = len(connection.scalars(sa.select(dead_letters.c.id)).all())
        counted = connection.execute(sa.select(sa.func.sum(jobs.c.failures), sa.func.sum(jobs.c.crashes))).one()
        counts["failures"], counts["crashes"] = int(counted[0]), int(counted[1])
        return Counter({name: count for name, count in counts.items() if count})

    return site.database.read(count_failures)
