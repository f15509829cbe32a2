"""Answers of a real worker about itself: over its port, and to `penstock probe`."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from blocking_jobs import BlockUntil
from engine_jobs import Add, Break, End, Sleep
from renewing import Renewing
from running import PAIRS, Running, running
from support.polling import WAIT_SECONDS, until
from support.servers.scrape import get, scrape
from support.servers.shared import broker_url, delete_queues

from penstock.config.process.probe import probe
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.workers.local.up.redis_server import RedisServer, free_port


@pytest.fixture(params=PAIRS, ids="-".join)
def served(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[tuple[Running, int]]:
    """A worker of each engine on each broker, and its port."""
    engine, broker = request.param
    prefix, port = f"t{uuid.uuid4().hex[:10]}", free_port()
    environment = {"PENSTOCK_HTTP_PORT": str(port)}
    url = broker_url(broker, redis_server)
    with running(engine, url, prefix, tmp_path, modules=("blocking_jobs",), environment=environment) as worker:
        yield worker, port
    delete_queues(broker, prefix)


ONE_OF_EACH = pytest.mark.parametrize(
    "served", [("celery", "rabbitmq"), ("dramatiq", "redis")], ids="-".join, indirect=True
)


def test_metrics_are_those_of_the_jobs_that_ran(served: tuple[Running, int]) -> None:
    worker, port = served
    jobs = [Add(a=1), Add(a=2), Break(), *(End(how=how) for how in ("snooze", "discard", "retry", "retry"))]
    for handle in worker.producer.enqueue_many(jobs):
        until(lambda handle=handle: handle.status().state not in ("queued", "running"))  # type: ignore[misc]
    until(lambda: scrape(port).value("penstock_worker_in_flight") == 0, "every job settled")
    samples = scrape(port)

    def ended(kind: str, outcome: str) -> float:
        return samples.value("penstock_jobs_total", kind=kind, outcome=outcome, queue="engines", engine=worker.engine)

    assert ended("engines.add", "succeeded") == 3  # one of them started the worker
    assert (ended("engines.break", "dead"), ended("engines.end", "retry")) == (1, 2)
    assert (ended("engines.end", "snoozed"), ended("engines.end", "discarded")) == (1, 1)
    assert samples.value("penstock_jobs_total") == 8
    assert samples.value("penstock_job_run_seconds_count", kind="engines.add") == 3
    assert samples.value("penstock_job_wait_seconds_count") == 8
    assert samples.value("penstock_job_wait_seconds_bucket", le="+Inf", kind="engines.end") == 4
    for step in ("fetch", "claim", "record", "acknowledge"):
        assert samples.value("penstock_worker_step_seconds_count", step=step) >= 1
    assert samples.value("penstock_worker_slots", state="free") == 5
    assert samples.value("penstock_worker_ready") == 1
    assert samples.value("penstock_info", role="worker", engine=worker.engine) == 1


def test_a_worker_is_live_and_not_ready_while_it_drains(served: tuple[Running, int]) -> None:
    worker, port = served
    until(lambda: get(port, "/ready") == (200, "ok\n"))
    assert get(port, "/startup") == get(port, "/live") == (200, "ok\n")
    assert probe("ready", name=worker.name) == (True, [f"worker {worker.name} (pid {worker.process.pid}): ready"])
    handle = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.status().state == "running")
    assert scrape(port).value("penstock_worker_slots", state="used") == 1
    worker.process.send_signal(signal.SIGTERM)
    until(lambda: get(port, "/ready") == (503, "stopping\n"))
    assert get(port, "/live")[0] == 200
    good, lines = probe("ready", name=worker.name)
    assert not good
    assert lines[0].endswith("not ready: stopping")
    assert probe("live", name=worker.name)[0]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert probe("live", name=worker.name)[1] == [
        f"no worker or dispatcher of this user runs here with name {worker.name}"
    ]


@ONE_OF_EACH
def test_a_worker_whose_loop_is_blocked_is_not_ready_and_then_not_live(
    served: tuple[Running, int], tmp_path: Path
) -> None:
    worker, port = served
    handle = worker.producer.enqueue(BlockUntil(file=str(tmp_path / "go on")))
    assert until(lambda: (page := get(port, "/ready"))[0] == 503 and page[1]).startswith("a handler blocks")
    reason = until(lambda: (page := get(port, "/live"))[0] == 503 and page[1])
    assert reason.startswith("a handler has blocked the event loop for 1")
    assert handle.id not in reason, "a stranger may read it"
    assert not probe("live", pid=worker.process.pid)[0]
    assert "penstock_worker_ready 0.0" in get(port, "/metrics")[1]
    (tmp_path / "go on").touch()
    until(lambda: get(port, "/live")[0] == 200)
    until(lambda: get(port, "/ready")[0] == 200)
    assert handle.wait(timeout=WAIT_SECONDS).state == "succeeded"


@ONE_OF_EACH
def test_a_process_that_is_stopped_is_not_live(served: tuple[Running, int]) -> None:
    worker, _ = served
    worker.process.send_signal(signal.SIGSTOP)
    pid = worker.process.pid
    assert probe("live", pid=pid, timeout_seconds=0.5) == (
        False,
        [f"process (pid {pid}): not live: it does not answer"],
    )
    worker.process.send_signal(signal.SIGCONT)
    until(lambda: probe("live", pid=pid)[0])


@ONE_OF_EACH
def test_a_port_in_use_ends_the_process_with_the_reason(served: tuple[Running, int]) -> None:
    worker, port = served
    second = Running(worker.engine, worker.settings.broker_url, worker.settings.prefix, worker.folder)
    environment = {
        "PENSTOCK_BROKER_URL": worker.settings.broker_url,
        "PENSTOCK_DATABASE_URL": worker.settings.database_url,
        "PENSTOCK_HTTP_PORT": str(port),
        "PYTHONPATH": str(Path(__file__).parents[1] / "apps"),
    }
    words = ["worker", "--engine", worker.engine, "--queues", "engines", "--import", "engine_jobs"]
    ended = subprocess.run(
        [sys.executable, "-m", "penstock", *words], env=environment, capture_output=True, text=True, timeout=120
    )
    second.close()
    assert ended.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port} for metrics and health: Address already in use" in ended.stderr
    assert "PENSTOCK_HTTP_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_the_port_goes_to_the_successor(engine: str, redis_server: RedisServer, prefix: str, tmp_path: Path) -> None:
    port = free_port()
    worker = Renewing(
        engine,
        redis_server.url,
        prefix,
        tmp_path,
        options=("--max-jobs", "20"),
        environment={"PENSTOCK_HTTP_PORT": str(port)},
    )
    try:
        worker.start()
        first = scrape(port).value("penstock_jobs_total")
        assert first == 1
        worker.renew()
        done = until(lambda: get(port, "/ready")[0] == 200 and scrape(port))
        assert done.value("penstock_jobs_total") < 20, "the counters are those of the new process"
        good, lines = probe("ready", name=worker.name)
        assert good, lines
        assert len(lines) == 1, "the process that retires does not answer any more"
    finally:
        print(worker.text())
        worker.stop()


def test_a_dispatcher_answers_too(redis_url: str, prefix: str, sqlite_url: str, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "PENSTOCK_BROKER_URL": redis_url,
        "PENSTOCK_DATABASE_URL": sqlite_url,
        "PENSTOCK_PREFIX": prefix,
        "PENSTOCK_HTTP_PORT": str(port),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "dispatcher"], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        until(lambda: get(port, "/live") == (200, "ok\n"), unless=process.poll)
        assert get(port, "/startup")[0] == 200
        assert until(lambda: (page := get(port, "/ready"))[0] == 503 and page[1]) == "the ledger does not answer\n"
        database = Database(sqlite_url)  # its tables were missing
        upgrade(database)
        database.close()
        until(lambda: get(port, "/ready") == (200, "ok\n"))
        samples = scrape(port)
        assert samples.value("penstock_info", role="dispatcher") == 1
        assert samples.value("penstock_faults_total", fault="ledger unavailable") >= 1
        good, [line] = probe("ready", prefix=prefix)
        assert good
        assert line.startswith("dispatcher dispatcher@")
        assert not probe("ready", prefix=prefix, role="worker")[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert get(port, "/live")[0] == 0
    finally:
        process.kill()
        process.wait()
        print((tmp_path / "log").read_text())
