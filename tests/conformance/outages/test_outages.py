"""Brokers that die, connections that are cut, workers that are killed, frozen, greedy, or off in time."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import acme
import outage_jobs
import pytest
import sqlalchemy as sa
from support.ledgers import temporary_database
from support.polling import WAIT_SECONDS, until
from support.servers.killable_redis import running_redis
from support.servers.proxy import Proxy
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server
from support.servers.shared import AMQP_URL, POSTGRES_URL, delete_rabbitmq, need
from support.stack import PAIRS, Stack, faketime_library, lines

from penstock.ledger.sql.tables import jobs, workers
from penstock.workers.engines.worker import Worker

LEASE = 3.0
LONG_LEASE = 2 * LEASE
"""Where a worker must keep its jobs although its own threads get no turn, on a machine whose cores others need."""
ROUNDS = int(os.environ.get("PENSTOCK_TEST_KILLS", "3"))
"""Times a worker is killed at a random moment, for each pair."""
SEED = int(os.environ.get("PENSTOCK_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
SKEW_SECONDS = 300

pytestmark = pytest.mark.slow
pairs = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


class Site(Stack):
    """A stack over PostgreSQL or SQLite whose workers know the jobs of these tests too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, lease_seconds=LEASE, **options)
        # On a RabbitMQ that others use, a dispatcher would take their clients' messages from a queue of the same name.
        self.settings = self.settings.model_copy(update={"stock_queues": ()})
        outage_jobs.EFFECTS.metadata.create_all(self.database.engine)

    def start_worker(self, concurrency: int = 20, **changes: str) -> subprocess.Popen[bytes]:
        words = ["worker", "--engine", self.engine, "--queues", "acme", "--concurrency", str(concurrency)]
        return self.run([*words, "--import", "acme", "--import", "outage_jobs"], **changes)

    def start_dispatcher(self) -> subprocess.Popen[bytes]:
        return self.run(["dispatcher", "--import", "acme", "--import", "outage_jobs"])

    def states(self) -> Counter[str]:
        select = sa.select(jobs.c.state, sa.func.count().label("rows")).group_by(jobs.c.state)
        rows = self.database.read(lambda connection: connection.execute(select).all())
        return Counter({row.state: row.rows for row in rows})

    def all_succeed(self, count: int) -> None:
        until(lambda: self.states()["succeeded"] >= count, f"{count} successes")
        assert self.states() == {"succeeded": count}

    def workers(self) -> list[str]:
        """Names of live workers."""
        select = sa.select(workers.c.name).where(workers.c.stopped_at.is_(None), workers.c.engine != "dispatcher")
        return list(self.database.read(lambda connection: connection.scalars(select).all()))

    def effects(self) -> Counter[int]:
        """How many rows each `Effect` has written."""
        select = sa.select(outage_jobs.EFFECTS.c.number)
        return Counter(self.database.read(lambda connection: connection.scalars(select).all()))

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """SIGSTOP, but not while it has SQLite's only write lock: that outage is another test's subject."""

        def is_frozen() -> bool:
            process.send_signal(signal.SIGSTOP)
            look = sqlite3.connect(self.folder / "ledger.db", timeout=0.5, isolation_level=None)
            try:
                look.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                return False
            finally:
                look.close()
            return True

        until(is_frozen, pause=0.05)

    def said(self, text: str) -> bool:
        """Whether any process has logged it."""
        return any(text in log.read_text(errors="replace") for log in self.folder.glob("*.log"))


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitmqNode]:
    if find_rabbitmq_server() is None:
        pytest.skip("rabbitmq-server is not installed: no node that may be killed")
    node = RabbitmqNode(tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.kill()


@pytest.fixture
def own_broker(pair: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A broker that the test may kill. Either confirms only what is on disk."""
    if pair[1] == "rabbitmq":
        yield request.getfixturevalue("node")
        return
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def broker_url(pair: tuple[str, str], request: pytest.FixtureRequest) -> str:
    """The broker that is shared by the tests."""
    if pair[1] == "rabbitmq":
        need("RabbitMQ")
        return AMQP_URL
    return str(request.getfixturevalue("redis_url"))


@pytest.fixture
def proxy(broker_url: str) -> Iterator[Proxy]:
    proxy = Proxy(urlsplit(broker_url).port or 0)
    yield proxy
    proxy.close()


def through(proxy: Proxy, url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[list[Site]]:
    """Sites to stop in the end; their queues go too."""
    sites: list[Site] = []
    yield sites
    for site in sites:
        for process in site.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        site.stop()
        if request.session.testsfailed:
            print(site.logs())
        if site.broker_url == AMQP_URL:
            delete_rabbitmq(AMQP_URL, site.settings.prefix)


@pytest.fixture
def site(pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]) -> Site:
    return make_site(pair, broker_url, tmp_path, running)


def make_site(pair: tuple[str, str], url: str, folder: Path, running: list[Site], **options: Any) -> Site:
    site = Site(pair[0], url, f"t{uuid.uuid4().hex[:10]}", folder, **options)
    running.append(site)
    site.start_dispatcher()
    return site


def marks(file: Path, count: int, seconds: float = 0) -> list[acme.Mark]:
    return [acme.Mark(file=str(file), text=str(number), seconds=seconds) for number in range(count)]


@pairs
def test_a_broker_killed_in_the_middle_of_a_thousand_jobs_loses_none(
    pair: tuple[str, str], own_broker: Any, tmp_path: Path, running: list[Site]
) -> None:
    file = tmp_path / "file"
    site = make_site(pair, own_broker.url, tmp_path, running)
    site.start_worker()
    idle = Worker(site.settings, engine=pair[0], queues=["idle"], concurrency=1)
    idle.start()
    try:
        until(lambda: idle.ready, "a ready worker")
        site.producer.enqueue_many(marks(file, 1000, seconds=0.1))
        until(lambda: lines(file), "the first line")
        # RabbitMQ (3.10) never opens a quorum queue again that was declared within the last second before it is killed.
        settled = time.monotonic() + 3
        until(lambda: len(lines(file)) > 200 and time.monotonic() > settled, "some lines")
        own_broker.kill()
        assert len(lines(file)) < 1000
        until(lambda: not idle.intake.alive, "a worker that says that it does not consume")
        assert not idle.ready
        own_broker.start()
        until(lambda: idle.ready, "a worker that is ready again")
        site.all_succeed(1000)
    finally:
        idle.stop()
    # No worker died, so the deliveries that the broker repeats are known to be done, or to be running.
    assert sorted(lines(file), key=int) == [str(number) for number in range(1000)]


@pairs
def test_workers_go_on_when_every_connection_was_cut(
    pair: tuple[str, str], broker_url: str, proxy: Proxy, tmp_path: Path, running: list[Site]
) -> None:
    file = tmp_path / "file"
    site = make_site(pair, through(proxy, broker_url), tmp_path, running)
    try:
        site.start_worker()
        site.producer.enqueue_many(marks(file, 200, seconds=0.1))
        until(lambda: len(lines(file)) > 30, "some lines")
        proxy.cut()
        time.sleep(1.5 * LEASE)
        proxy.restore()
        site.all_succeed(200)
        late = site.producer.enqueue(acme.Mark(file=str(file), text="200"))
        assert late.wait(WAIT_SECONDS).state == "succeeded"
        assert sorted(lines(file), key=int) == [str(number) for number in range(201)]
    finally:
        site.stop()  # first: a worker declares its queues again
        if pair[1] == "rabbitmq":
            delete_rabbitmq(broker_url, site.settings.prefix)


@pairs
def test_workers_killed_at_random_moments_lose_nothing_and_repeat_no_effect(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PENSTOCK_TEST_KILLS=20` makes it long, and `PENSTOCK_TEST_SEED` repeats a run."""
    print(f"PENSTOCK_TEST_SEED={SEED} PENSTOCK_TEST_KILLS={ROUNDS}")
    monkeypatch.setenv("PENSTOCK_MAX_CRASHES", "1000")
    chance = random.Random(SEED)
    file, started = tmp_path / "file", tmp_path / "started"
    per_round = 40
    for number in range(ROUNDS):
        share = range(number * per_round, (number + 1) * per_round)
        site.producer.enqueue_many(
            [acme.Mark(file=str(file), text=str(number), seconds=chance.uniform(0, 0.3)) for number in share]
            + [outage_jobs.Effect(number=number, file=str(started), seconds=chance.uniform(0, 0.3)) for number in share]
        )
        worker = site.start_worker(concurrency=10)
        before = len(lines(file))
        until(lambda before=before: len(lines(file)) > before, "a working worker")
        time.sleep(chance.uniform(0, 0.6))
        site.stop_process(worker, signal.SIGKILL)
    site.start_worker()
    count = ROUNDS * per_round
    site.all_succeed(2 * count)
    assert {int(line) for line in lines(file)} == set(range(count))
    assert site.effects() == dict.fromkeys(range(count), 1)


@pairs
def test_the_job_of_a_frozen_worker_is_taken_over_and_its_late_outcome_refused(
    pair: tuple[str, str], site: Site, broker_url: str, proxy: Proxy, tmp_path: Path
) -> None:
    """RabbitMQ keeps a delivery with its connection until that fails, which heartbeats tell after a minute at most.

    Here the cut connection replaces them. Redis does not need it: the lease ends by itself.
    """
    file = tmp_path / "started"
    frozen = site.start_worker(PENSTOCK_BROKER_URL=through(proxy, broker_url))
    handle = site.producer.enqueue(outage_jobs.Effect(number=1, file=str(file), seconds=LEASE))
    until(lambda: lines(file), "the first run")
    site.freeze(frozen)
    site.start_worker()
    if pair[1] == "rabbitmq":
        time.sleep(2 * LEASE)
        assert len(lines(file)) == 1
        proxy.cut()
    until(lambda: len(lines(file)) == 2, "the second run")
    assert handle.wait(WAIT_SECONDS).state == "succeeded"
    if pair[1] == "rabbitmq":
        proxy.restore()
    frozen.send_signal(signal.SIGCONT)
    until(lambda: site.said("another worker has taken it over"), "the refusal")
    status = handle.status()
    assert (status.state, status.crashes, status.failures) == ("succeeded", 1, 0)
    assert site.effects() == {1: 1}


@pairs
def test_a_handler_that_holds_the_interpreter_for_longer_than_the_lease_keeps_its_job(
    site: Site, tmp_path: Path
) -> None:
    """On Redis a second process renews the worker's leases; on RabbitMQ the connection stays open for as long."""
    for _ in range(3):  # one for each job, and one that would take them over
        site.start_worker(concurrency=1, PENSTOCK_LEASE_SECONDS=str(LONG_LEASE))
    kinds = (outage_jobs.GreedyOnce, outage_jobs.GreedyMost)
    files = [tmp_path / kind.__name__ for kind in kinds]
    handles = [  # low: on RabbitMQ a busy worker may have the next job of a higher lane at hand, and keep it
        site.producer.enqueue(kind(file=str(file), seconds=int(1.5 * LONG_LEASE)), priority="low")
        for kind, file in zip(kinds, files, strict=True)
    ]
    for handle, file in zip(handles, files, strict=True):
        status = handle.wait(WAIT_SECONDS)
        assert (status.state, status.attempt, status.crashes) == ("succeeded", 1, 0), site.logs()
        assert len(lines(file)) == 1


@pairs
def test_ten_thousand_jobs_that_wait_for_the_first_worker_run_once_each(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "file"
    site.producer.enqueue_many(marks(file, 10_000))
    site.start_worker(concurrency=200)
    site.all_succeed(10_000)
    assert sorted(lines(file), key=int) == [str(number) for number in range(10_000)]


@pairs
def test_workers_whose_clocks_are_five_minutes_off_run_nothing_twice(
    pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    need("PostgreSQL")  # with SQLite all are on one machine, and its clock is the only one
    behind, ahead = shifted_clock(-SKEW_SECONDS), shifted_clock(SKEW_SECONDS)
    file, started, most_file = tmp_path / "file", tmp_path / "started", tmp_path / "most"
    with temporary_database(POSTGRES_URL) as url:
        site = make_site(pair, broker_url, tmp_path, running, database_url=url)
        # A lease that is written behind time would seem to have ended, so that a copy or a dispatcher's rescue gets in.
        site.start_worker(**behind)
        most = site.producer.enqueue(outage_jobs.Most(file=str(most_file), seconds=2 * LEASE))
        slow = acme.Mark(file=str(file), text="slow", seconds=2 * LEASE)
        first = site.producer.enqueue(slow, id=f"{site.settings.prefix}-slow")
        until(lambda: lines(most_file) and first.status().state == "running", "the first runs")
        doomed = site.start_worker(**ahead)
        delayed = site.producer.enqueue(acme.Add(a=1, b=2), delay=2)
        until(lambda: len(site.workers()) == 2, "the second worker")
        for _ in range(20):  # as a producer makes them that was cut off before the broker's answer
            site.producer.enqueue(slow, id=first.id)
        site.producer.enqueue_many(marks(file, 100, seconds=0.05))
        # All but `most`, which may end before or after: what still runs when a worker is killed may run again.
        until(
            lambda: site.states()["succeeded"] >= (103 if most.status().state == "succeeded" else 102), "all of these"
        )
        assert delayed.status().state == first.status().state == "succeeded"

        # And one that is written ahead of time would keep its jobs for minutes after its worker has died.
        for number in range(10):
            site.producer.enqueue(outage_jobs.Effect(number=number, file=str(started), seconds=LEASE))
        until(lambda: len(lines(started)) == 10, "ten runs")
        site.stop_process(doomed, signal.SIGKILL)
        assert most.wait(WAIT_SECONDS).state == "succeeded"
        site.all_succeed(113)
        assert Counter(lines(file)) == dict.fromkeys(["slow", *(str(number) for number in range(100))], 1)
        assert site.effects() == dict.fromkeys(range(10), 1)
        site.stop()


def shifted_clock(seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is off."""
    if (library := faketime_library()) is None:
        pytest.skip("libfaketime is not installed")
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
