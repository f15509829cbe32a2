"""Jobs that kill their process next to others, under a supervisor that starts the worker again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.polling import SETTLE_SECONDS, until
from support.servers.shared import broker_url
from support.stack import PAIRS, TESTS, Stack, stopped_at_the_end
from workers.executor.suspects.suspect_jobs import EFFECTS, KILLERS, Coroutine, Function, Untracked

from penstock.ledger.effects import effect_id
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql import tables
from penstock.producers import JobHandle
from penstock.schemas.states import FINAL
from penstock.workers.local.up.redis_server import RedisServer

MODULE = "workers.executor.suspects.suspect_jobs"
INNOCENT = ("fine", "session", "once")


class Site(Stack):
    """A stack with one worker, which is started again whenever it has died."""

    deaths = -1

    def start_supervised(self, *command: str) -> None:
        path = os.pathsep.join([str(TESTS), str(TESTS / "conformance")])
        self.run([*command, "--import", MODULE], PYTHONPATH=path)

    def supervise(self) -> None:
        if self.deaths < 0 or self.processes[-1].poll() is not None:
            self.deaths += 1
            self.start_supervised("worker", "--engine", self.engine, "--queues", "ex", "--concurrency", "30")

    def have_ended(self, handles: list[JobHandle]) -> bool:
        self.supervise()
        return all(handle.status().state in FINAL for handle in handles)


@pytest.fixture(params=PAIRS, ids="-".join)
def site(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    site = Site(engine, broker_url(broker, redis_server), prefix, tmp_path)
    EFFECTS.metadata.create_all(site.database.engine)
    site.start_supervised("dispatcher")
    with stopped_at_the_end(site, broker, request.session):
        yield site


def test_jobs_that_kill_their_process_are_quarantined_and_their_neighbours_succeed(site: Site, tmp_path: Path) -> None:
    kinds, whats = (Coroutine, Function), (*KILLERS, *INNOCENT)
    jobs = [kind(what=what, folder=str(tmp_path), jobs=len(kinds) * len(whats)) for kind in kinds for what in whats]
    handles = site.producer.enqueue_many(jobs)
    until(lambda: site.have_ended(handles), "the end of all jobs", SETTLE_SECONDS, pause=0.2)
    assert site.deaths == 1
    for job, handle in zip(jobs, handles, strict=True):
        status = handle.status()
        if job.what in KILLERS:
            assert (status.state, status.crashes, status.failures) == ("dead", 3, 0), status
            assert site.letter(handle.id).reason == "crashed"
        else:
            assert (status.state, status.crashes, status.failures) == ("succeeded", 1, 0), status
        if job.what == "once":
            assert status.result == effect_id(handle.id, "charge")
        outcomes = [row.outcome for row in _attempts(site, handle)]
        assert outcomes == ["crashed"] * 3 if job.what in KILLERS else ["crashed", "succeeded"]
    stored = site.database.read(lambda connection: connection.scalars(sa.select(EFFECTS.c.job_id)).all())
    assert sorted(stored) == sorted(
        handle.id for job, handle in zip(jobs, handles, strict=True) if job.what == "session"
    )


@pytest.mark.parametrize("site", [PAIRS[1], PAIRS[2]], ids="-".join, indirect=True)
def test_new_killers_one_after_another_do_not_bury_a_long_neighbour(site: Site, tmp_path: Path) -> None:
    victim = site.producer.enqueue(Coroutine(what="wait", folder=str(tmp_path)))
    site.supervise()
    until((tmp_path / "pid").exists, "the start of the long job", unless=lambda: site.supervise())
    for number in range(3):
        until(lambda number=number: _runs(site, victim, apart=number > 0), unless=lambda: site.supervise())
        killer = site.producer.enqueue(Coroutine(what="exit", folder=str(tmp_path), jobs=1))
        until(lambda number=number: site.deaths == number + 1, "the worker's death", unless=lambda: site.supervise())
        until(lambda killer=killer: site.have_ended([killer]), "the killer's end", SETTLE_SECONDS)
    (tmp_path / "go").touch()
    until(lambda: site.have_ended([victim]), "the end of the long job", SETTLE_SECONDS)
    status = victim.status()
    assert (status.state, status.crashes, status.failures) == ("succeeded", 1, 0), status
    assert [row.outcome for row in _attempts(site, victim)] == ["crashed"] * 3 + ["succeeded"]


def test_untracked_jobs_that_kill_their_process_are_quarantined_and_their_neighbours_run(
    site: Site, tmp_path: Path
) -> None:
    whats = (*KILLERS, *["fine"] * 5)
    jobs = [Untracked(what=what, folder=str(tmp_path), jobs=len(whats)) for what in whats]
    handles = dict(zip(site.producer.enqueue_many(jobs), whats, strict=True))
    killers = [handle for handle, what in handles.items() if what in KILLERS]
    innocent = [handle for handle, what in handles.items() if what == "fine"]

    def have_run() -> bool:
        return all((tmp_path / f"{handle.id}.done").exists() for handle in innocent)

    until(lambda: site.have_ended(killers) and have_run(), "the end of all jobs", SETTLE_SECONDS, pause=0.2)
    # RabbitMQ counts what a worker releases, too: there the second delivery shows no crash yet.
    assert site.deaths in ([1] if site.broker_url.startswith("redis") else [2, 3])
    for handle in killers:
        assert (handle.status().state, handle.status().crashes) == ("dead", 3), handle.status()
        assert site.letter(handle.id).reason == "crashed"
    assert _on_record(site) == sorted(handle.id for handle in killers), "those that succeed leave no record"


def _on_record(site: Site) -> list[str]:
    return sorted(site.database.read(lambda connection: connection.scalars(sa.select(tables.jobs.c.id)).all()))


def _runs(site: Site, handle: JobHandle, *, apart: bool) -> bool:
    """Whether a job runs, and whether that is on record as apart: until then its worker's death is a crash of its."""
    jobs, runs = tables.jobs, tables.suspect_runs
    select = sa.select(jobs.c.id).where(jobs.c.id == handle.id, jobs.c.state == "running")
    if apart:
        select = select.join(runs, sa.and_(runs.c.job_id == jobs.c.id, runs.c.fence == jobs.c.fence))
    return bool(site.database.read(lambda connection: connection.execute(select).all()))


def _attempts(site: Site, handle: JobHandle) -> list[sa.Row[tuple[object, ...]]]:
    select = sa.select(history).where(history.c.job_id == handle.id).order_by(history.c.fence)
    return list(site.database.read(lambda connection: connection.execute(select).all()))
