"""The promises of delivery, each with a worker that is killed where it would break it: on every database."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import promise_jobs
import pytest
import sqlalchemy as sa
from promise_jobs import Charge, ChargeAsync, Gated, Most, Pointed, Store, StoreAsync
from support.ledgers import temporary_database
from support.polling import WAIT_SECONDS, until
from support.servers.shared import MARIADB_URL, POSTGRES_URL, need
from support.stack import Stack, lines

from penstock.ledger.effects import effect_id, effects_of
from penstock.ledger.sql.tables import jobs
from penstock.producers import JobHandle
from penstock.workers.local.up.redis_server import RedisServer

pytestmark = pytest.mark.slow
DATABASES = ("sqlite", "postgres", "mariadb")
NO_ASYNC_DRIVER = ("mariadb", StoreAsync)
SERVERS = {"postgres": ("PostgreSQL", POSTGRES_URL), "mariadb": ("MariaDB", MARIADB_URL)}


class Site(Stack):
    """A stack whose one worker is started again whenever a job has killed it."""

    worker: subprocess.Popen[bytes] | None = None

    def start_promising_worker(self) -> subprocess.Popen[bytes]:
        words = ["worker", "--engine", self.engine, "--queues", "acme", "--concurrency", "5"]
        return self.run([*words, "--import", "promise_jobs"])

    def run_job(self, job: Pointed) -> JobHandle:
        """Run a job to its end, past the death of its worker."""
        if self.worker is None or self.worker.poll() is not None:
            self.worker = self.start_promising_worker()
        handle = self.producer.enqueue(job)
        until(lambda: self.worker is not None and self.worker.poll() is not None, "the worker's death")
        assert Path(f"{job.file}.killed").exists()
        self.worker = self.start_promising_worker()
        handle.wait(WAIT_SECONDS)
        return handle

    def followers(self, job_id: str) -> int:
        """How many jobs the handler has enqueued."""
        select = sa.select(jobs.c.payload).where(jobs.c.kind == "promise.next")
        payloads = self.database.read(lambda connection: connection.scalars(select).all())
        return sum(job_id in payload for payload in payloads)

    def stored(self, job_id: str) -> int:
        table = promise_jobs.EFFECTS
        count = sa.select(sa.func.count()).select_from(table).where(table.c.job_id == job_id)
        return int(self.database.read(lambda connection: connection.scalar(count)) or 0)


@pytest.fixture(scope="module", params=DATABASES)
def site(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with contextlib.ExitStack() as closing:
        url = None
        if request.param != "sqlite":
            name, server = SERVERS[request.param]
            need(name)
            url = closing.enter_context(temporary_database(server))
        prefix, folder = f"t{uuid.uuid4().hex[:10]}", tmp_path_factory.mktemp(f"promises-{request.param}")
        site = Site("dramatiq", redis_server.url, prefix, folder, lease_seconds=1.0, database_url=url)
        closing.callback(site.stop)
        site.settings = site.settings.model_copy(update={"stock_queues": ()})
        promise_jobs.EFFECTS.metadata.create_all(site.database.engine)
        site.run(["dispatcher", "--import", "promise_jobs"])
        yield site
        if request.session.testsfailed:
            print(site.logs())


@pytest.mark.parametrize("kind", [Charge, ChargeAsync])
@pytest.mark.parametrize(
    ("point", "lookups"),
    [
        ("beginning", 0),  # nothing was recorded, so nothing can have happened
        ("started", 1),  # the provider says that it did not happen
        ("happened", 1),  # the provider says that it did
        ("confirming", 1),
        ("confirmed", 0),  # it is on record
    ],
)
def test_an_effect_happens_once_wherever_its_worker_dies(
    site: Site, tmp_path: Path, kind: type[Pointed], point: str, lookups: int
) -> None:
    file = tmp_path / "bank"
    handle = site.run_job(kind(file=str(file), point=point))
    status, charged = handle.status(), effect_id(handle.id, "charge")
    assert (status.state, status.result, status.crashes) == ("succeeded", charged, 1)
    assert lines(file) == [f"charge {charged}"]
    assert len(lines(tmp_path / "bank.asked")) == lookups
    [row] = effects_of(site.database, handle.id)
    assert (row.id, row.done_at is not None) == (charged, True)
    assert site.followers(handle.id) == 1


@pytest.mark.parametrize(("point", "charges"), [("started", 0), ("happened", 1)])
def test_an_effect_in_doubt_is_not_repeated_but_left_to_a_person(
    site: Site, tmp_path: Path, point: str, charges: int
) -> None:
    file = tmp_path / "unasked"
    handle = site.run_job(Charge(file=str(file), point=point))
    assert handle.status().state == "dead"
    assert site.letter(handle.id).reason == "in_doubt"
    assert len(lines(file)) == charges
    [row] = effects_of(site.database, handle.id)
    assert row.done_at is None
    assert site.followers(handle.id) == 0


@pytest.mark.parametrize(
    ("site", "kind"),
    [(database, kind) for database in DATABASES for kind in (Store, StoreAsync) if (database, kind) != NO_ASYNC_DRIVER],
    indirect=["site"],
)
@pytest.mark.parametrize(("point", "crashes"), [("written", 1), ("committing", 1), ("committed", 0)])
def test_rows_written_with_the_outcome_exist_once_wherever_the_worker_dies(
    site: Site, tmp_path: Path, kind: type[Pointed], point: str, crashes: int
) -> None:
    handle = site.run_job(kind(file=str(tmp_path / "file"), point=point))
    status = handle.status()
    assert (status.state, status.crashes) == ("succeeded", crashes)
    assert site.stored(handle.id) == 1
    assert site.followers(handle.id) == 1


def test_an_at_most_once_job_is_not_repeated_after_a_crash(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "file"
    handle = site.run_job(Most(file=str(file), point="ran"))
    assert handle.status().state == "dead"
    assert site.letter(handle.id).reason == "crashed"
    assert lines(file) == ["ran"]


@pytest.mark.parametrize("site", ["postgres", "mariadb"], indirect=True)
def test_a_worker_that_was_frozen_before_the_effect_does_not_begin_it(site: Site, tmp_path: Path) -> None:
    # Not on SQLite: frozen with its only lock it would stop everything; see the outages.
    file, gate = tmp_path / "bank", tmp_path / "gate"
    if site.worker is not None and site.worker.poll() is None:
        site.stop_process(site.worker)
    frozen = site.start_promising_worker()
    handle = site.producer.enqueue(Gated(file=str(file), point=str(gate)))
    until(lambda: lines(tmp_path / "bank.waiting"), "a waiting handler")
    frozen.send_signal(signal.SIGSTOP)
    try:
        site.worker = site.start_promising_worker()
        until(lambda: len(lines(tmp_path / "bank.waiting")) == 2, "the take-over")
        gate.touch()
        assert handle.wait(WAIT_SECONDS).state == "succeeded"
    finally:
        frozen.send_signal(signal.SIGCONT)
    # It drains when the late attempt has ended.
    assert site.stop_process(frozen) == 0
    assert lines(file) == [f"charge {effect_id(handle.id, 'charge')}"]
    assert handle.status().crashes == 1
