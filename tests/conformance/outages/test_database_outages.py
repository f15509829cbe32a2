"""A ledger that is unavailable in the middle of many jobs: none fails for it, none is lost, and the worker says so."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, prlimit

import outage_jobs
import pytest
import sqlalchemy as sa
from support.polling import until
from support.servers.databases import MariadbServer, PostgresServer, run
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
_LONGEST_FILE = 64 * 1024
"""Less than SQLite's log has by then, and more than the processes' own logs."""
EVERY = 10
"""One in so many jobs writes with `ctx.session`."""

pytestmark = pytest.mark.slow
Outage = Callable[[PostgresServer], AbstractContextManager[None]]


@contextmanager
def stopped(server: PostgresServer | MariadbServer) -> Iterator[None]:
    server.stop()
    yield
    time.sleep(SECONDS)
    server.start()


@contextmanager
def stalled(server: MariadbServer) -> Iterator[None]:
    """The server answers nothing, and no connection breaks."""
    server.stall()
    yield
    time.sleep(SECONDS)
    server.resume()


@contextmanager
def set_for_database(server: PostgresServer, setting: str) -> Iterator[None]:
    """A setting that every connection has from now on. It is taken back for new connections only."""
    run(server.url, f"ALTER DATABASE postgres SET {setting}", _CUT)
    yield
    time.sleep(SECONDS)
    name = setting.split()[0]
    run(server.url, f"SET {name} = 0", f"ALTER DATABASE postgres RESET {name}")  # 0 is off, also of what is on or off


_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"


def refusing_writes(server: PostgresServer) -> AbstractContextManager[None]:
    return set_for_database(server, "default_transaction_read_only = on")


@contextmanager
def too_slow(server: PostgresServer) -> Iterator[None]:
    """Every write to two tables takes longer than the `statement_timeout` of the database allows."""
    tables = ("penstock_jobs", "penstock_workers")
    trigger = "CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    run(
        server.url,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$",
        *(trigger.format(table) for table in tables),
    )
    with set_for_database(server, "statement_timeout = 200"):
        yield
    run(server.url, "SET statement_timeout = 0", *(f"DROP TRIGGER slow ON {table}" for table in tables))


@contextmanager
def read_only(server: MariadbServer) -> Iterator[None]:
    run(server.url, "SET GLOBAL read_only = 1")
    yield
    time.sleep(SECONDS)
    run(server.url, "SET GLOBAL read_only = 0")


@contextmanager
def locked(file: Path) -> Iterator[None]:
    other = sqlite3.connect(file, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ends = time.monotonic() + LOCK_SECONDS
    yield
    time.sleep(max(ends - time.monotonic(), 0))
    other.execute("COMMIT")
    other.close()


@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[3]], ids="-".join)
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


@pytest.mark.parametrize(
    ("pair", "outage"),
    [(PAIRS[0], refusing_writes), (PAIRS[3], refusing_writes), (PAIRS[1], too_slow)],
    ids=["celery-redis-read-only", "dramatiq-rabbitmq-read-only", "celery-rabbitmq-statement-timeout"],
)
def test_postgresql_that_refuses_or_cuts_short_every_transaction_for_some_seconds(
    pair: tuple[str, str], outage: Outage, broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    server = PostgresServer()
    try:
        server.start()
        site = make_site(pair, broker_url, tmp_path, running, database_url=server.url)
        mode = "thread" if pair[0] == "celery" else "async"
        survives(site, lambda: outage(server), mode)
        site.stop()
    finally:
        server.close()


@pytest.mark.parametrize("pair", [PAIRS[1], PAIRS[2]], ids="-".join)
def test_mariadb_that_is_read_only_for_some_seconds(
    pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    server = MariadbServer(tmp_path / "mariadb")
    try:
        server.start()
        run(server.url, "CREATE USER app", "GRANT ALL ON ledger.* TO app")  # root may write all the same
        site = make_site(pair, broker_url, tmp_path, running, database_url=server.url.replace("root@", "app@"))
        survives(site, lambda: read_only(server), "thread")
        site.stop()
    finally:
        server.close()


@pytest.mark.parametrize("pair", [PAIRS[1], PAIRS[2]], ids="-".join)
def test_sqlite_that_cannot_write_its_file_in_the_middle_of_many_jobs(
    pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    """Where the system refuses longer files, SQLite reports an I/O error or a full disk."""
    site = make_site(pair, broker_url, tmp_path, running)
    file, started = tmp_path / "file", tmp_path / "started"
    site.start_worker()
    jobs = marks(file, JOBS, seconds=0.02)
    jobs += [outage_jobs.Open(number=number, file=str(started), seconds=0.0) for number in range(20)]
    site.producer.enqueue_many(jobs[::3] + jobs[1::3] + jobs[2::3])
    until(lambda: len(lines(file)) > JOBS // 5 and lines(started), "some lines")
    for process in site.processes:
        prlimit(process.pid, RLIMIT_FSIZE, (_LONGEST_FILE, RLIM_INFINITY))
    until(lambda: site.said("jobs are held until it is back"), "a log line")
    time.sleep(SECONDS)
    for process in site.processes:
        prlimit(process.pid, RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))
    site.all_succeed(JOBS + 20)
    assert sorted(lines(file), key=int) == [str(number) for number in range(JOBS)]
    assert site.effects() == dict.fromkeys(range(20), 1)
    assert blemishes(site) == {}


@pytest.mark.parametrize("outage", [stopped, stalled])
@pytest.mark.parametrize("pair", [PAIRS[1], PAIRS[2]], ids="-".join)
def test_mariadb_killed_or_frozen_in_the_middle_of_many_jobs(
    pair: tuple[str, str],
    outage: Callable[[MariadbServer], AbstractContextManager[None]],
    broker_url: str,
    tmp_path: Path,
    running: list[Site],
) -> None:
    server = MariadbServer(tmp_path / "mariadb")
    try:
        server.start()
        # The default of 60 s would make the outage long; the log line that it is over needs one that has an end.
        site = make_site(pair, broker_url, tmp_path, running, database_url=f"{server.url}?read_timeout=2")
        survives(site, lambda: outage(server), "thread")
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
    """Failed or crashed attempts, and dead letters. A run that the outage cut short is none."""

    def count_failures(connection: sa.Connection) -> Counter[str]:
        counts = Counter(
            connection.scalars(
                sa.select(attempts.c.outcome).where(attempts.c.outcome.not_in(["interrupted", "snoozed"]))
            ).all()
        )
        counts["dead letters"] = len(connection.scalars(sa.select(dead_letters.c.id)).all())
        counted = connection.execute(sa.select(sa.func.sum(jobs.c.failures), sa.func.sum(jobs.c.crashes))).one()
        counts["failures"], counts["crashes"] = int(counted[0]), int(counted[1])
        return Counter({name: count for name, count in counts.items() if count})

    return site.database.read(count_failures)
