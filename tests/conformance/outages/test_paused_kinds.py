"""Paused kinds, on every engine and broker, whose jobs come in other ways than a producer's to a coroutine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import acme
import kombu.pools
import pytest
from celery import Celery
from support.ledgers import attempts_of
from support.polling import WAIT_SECONDS, until
from support.servers.shared import broker_url
from support.stack import PAIRS, TESTS, Stack, stopped_at_the_end
from support.workflows.jobs import Nightly
from workers.executor.suspects.suspect_jobs import Coroutine, Next

from penstock.ledger.members import controls
from penstock.ledger.workflows import commands
from penstock.producers import JobHandle
from penstock.producers.explain import explain
from penstock.schemas import State
from penstock.workers.local.up.redis_server import RedisServer

MODULES = ("acme", "support.workflows.jobs", "workers.executor.suspects.suspect_jobs")
QUEUES = ("acme", "wf", "wf-reports", "ex")


class Site(Stack):
    """A stack that runs the kinds of several modules."""

    def run_modules(self, *command: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(TESTS), str(TESTS / "conformance")])
        imports = [word for module in MODULES for word in ("--import", module)]
        return self.run([*command, *imports], PYTHONPATH=path)

    def start_own_worker(self) -> subprocess.Popen[bytes]:
        return self.run_modules("worker", "--engine", self.engine, "--queues", ",".join(QUEUES))

    def pause(self, kind: str) -> None:
        controls.pause(self.database, "kind", kind, actor="ada", reason="a deploy")

    def resume(self, kind: str) -> None:
        assert controls.resume(self.database, "kind", kind, actor="ada") is not None

    def wait_until_held(self, job_id: str) -> None:
        """Wait until a paused job is back in the ledger, where the explanation names the pause."""
        until(lambda: (row := self.row(job_id)) is not None and row.state == State.SCHEDULED, "the job in the ledger")
        because = explain(self.database, job_id, queues=QUEUES).because
        assert "is paused by ada since" in because, because
        assert "(a deploy)" in because


@pytest.fixture(params=PAIRS, ids="-".join)
def site(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    engine, broker = request.param
    site = Site(engine, broker_url(broker, redis_server), f"t{uuid.uuid4().hex[:10]}", tmp_path)
    with stopped_at_the_end(site, broker, request.session):
        site.run_modules("dispatcher")
        yield site


def test_isolated_jobs_stock_messages_and_steps_wait_while_their_kinds_are_paused(site: Site, tmp_path: Path) -> None:
    kinds = ("acme.isolated", "acme.add", "wf.report")
    for kind in kinds:
        site.pause(kind)
    worker = site.start_own_worker()
    isolated = site.producer.enqueue(acme.Isolated(text="x"))
    stock = _send_as_stock_client(site, "acme.add", a=20, b=22)
    workflow = site.producer.enqueue(Nightly(regions=["north", "south"]))
    site.wait_until_held(isolated.id)
    site.wait_until_held(stock.id)
    assert site.producer.enqueue(acme.Mark(file=str(tmp_path / "runs"), text="x")).wait(WAIT_SECONDS).attempt == 1
    steps = until(lambda: _members(site, workflow), "the jobs of the step")
    for job_id in steps:
        site.wait_until_held(job_id)
    assert workflow.status().state is State.SCHEDULED
    assert commands.show(site.database, workflow.id).row.state == "running"

    for kind in kinds:
        site.resume(kind)
    result = isolated.result(WAIT_SECONDS)
    assert result["text"] == "x"
    assert result["pid"] != worker.pid
    assert stock.result(WAIT_SECONDS)["sum"] == 42
    assert workflow.result(WAIT_SECONDS) == "sent 2"
    for job_id in (isolated.id, stock.id, *steps):
        assert [row.outcome for row in attempts_of(site.database, job_id)] == ["succeeded"]
        assert (site.row(job_id).attempt, site.row(job_id).failures) == (1, 0)


def test_a_suspect_of_a_paused_kind_waits_and_then_runs_apart(site: Site, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    worker = site.start_own_worker()
    suspect = site.producer.enqueue(Coroutine(what="wait", folder=str(tmp_path)))
    until(pid.exists, "the start of the job")
    site.pause("suspect.async")
    site.stop_process(worker, signal.SIGKILL)
    pid.unlink()
    worker = site.start_own_worker()
    site.wait_until_held(suspect.id)
    assert site.producer.enqueue(Next()).wait(WAIT_SECONDS).state is State.SUCCEEDED, "other kinds of its queue go on"
    assert not pid.exists()
    (tmp_path / "go").touch()
    site.resume("suspect.async")
    status = suspect.wait(WAIT_SECONDS)
    assert (status.state, status.crashes, status.failures) == (State.SUCCEEDED, 1, 0)
    assert json.loads(site.row(suspect.id).result)[0] != worker.pid, "it ran in a child"
    assert [row.outcome for row in attempts_of(site.database, suspect.id)] == ["crashed", "succeeded"]


def _members(site: Site, workflow: JobHandle) -> list[str]:
    """Ids of the jobs of the paused step, once both are there."""
    select = "SELECT id FROM penstock_jobs WHERE kind = 'wf.report'"
    ids = site.database.read(lambda connection: connection.exec_driver_sql(select).scalars().all())
    return list(ids) if len(ids) == 2 else []


def _send_as_stock_client(site: Site, kind: str, **fields: object) -> JobHandle:
    with Celery(broker=site.broker_url, set_as_current=False) as app:
        app.conf.task_default_queue = site.stock_queue
        sent = app.send_task(kind, kwargs=fields)
    kombu.pools.reset()
    return site.producer.handle(sent.id)
