"""Workers that renew themselves: nothing is lost or done twice, and there is always one that fetches."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from renewal_jobs import BROKEN_WHILE, HoldUntil, Leak
from renewing import PAIRS, Renewing, Start, starting
from support.polling import WAIT_SECONDS, until
from support.servers.processes import runs

from penstock.ledger.sql.tables import attempts, jobs
from penstock.schemas.states import State
from penstock.workers.local.up.redis_server import RedisServer


@pytest.fixture(params=PAIRS, ids="-".join)
def start(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Start]:
    """`start(*options)`: a worker of each engine on each broker, stopped afterwards."""
    yield from starting(request.param, redis_server, tmp_path)


@pytest.mark.timeout(400)  # five workers start one after the other
def test_max_jobs_replaces_the_process_again_and_again_and_each_job_runs_once(start: Start) -> None:
    worker = start("--max-jobs", "40")
    handles = worker.work(200)
    rows = worker.database.read(lambda connection: connection.execute(sa.select(jobs)).all())
    assert {handle.id for handle in handles} <= {row.id for row in rows}
    # A second claim is of a job that was claimed ahead and had not started when its process was full.
    assert {(row.state, row.attempt, row.crashes) for row in rows} == {("succeeded", 1, 0)}
    assert worker.database.read(lambda connection: connection.execute(sa.select(attempts)).all()) == []
    by_process = Counter(row.worker for row in rows)
    assert len(by_process) >= 4
    assert max(by_process.values()) < 60
    processes = worker.processes()
    assert [row.name for row in processes] == [f"{worker.name}-{n + 1}" for n in range(len(processes))]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert all(row.stopped_at is not None and row.ended is None for row in worker.processes())

    log = worker.text()
    for number in range(1, len(processes)):
        follows = log.index(f"worker process {number + 1} (pid {processes[number].pid}) is ready")
        assert log.index(f"worker {worker.name}-{number + 1} consumes") < follows
        assert follows < log.index(f"worker {worker.name}-{number} stops")


def test_max_memory_replaces_a_process_that_leaks(start: Start) -> None:
    worker = start("--max-memory", "300MB")
    while not worker.renewals():
        worker.producer.enqueue(Leak(mebibytes=64)).wait(timeout=90)
        worker.work(1)
    assert re.search(r"renews itself: it uses \d+\.\d MiB of memory, and max_memory is 286\.1 MiB", worker.text())
    until(lambda: worker.processes()[0].stopped_at is not None)


def test_a_long_job_ends_in_the_old_process_while_its_successors_run_others(start: Start, tmp_path: Path) -> None:
    worker = start("--max-jobs", "5")
    file = tmp_path / "go"
    long = worker.producer.enqueue(HoldUntil(file=str(file)))
    until(tmp_path.joinpath(f"go.{long.id}").exists)
    for _ in range(2):
        worker.renew()
    assert long.status().state is State.RUNNING
    first = worker.processes()[0]
    assert first.stopped_at is None
    names = {f"{worker.name}-1", worker.processes()[-1].name}
    until(lambda: names <= {name for reply in worker.client.control.ping(timeout=2) for name in reply}, "both answer")

    file.touch()
    assert long.result() == first.pid
    assert long.status().attempt == 1
    until(lambda: worker.processes()[0].stopped_at is not None)


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_sigterm_during_a_renewal_stops_all_processes_and_loses_nothing(
    start: Start, tmp_path: Path, signals: int
) -> None:
    worker = start("--max-jobs", "5")
    file = tmp_path / "go"
    handles: list[Any] = [worker.producer.enqueue(HoldUntil(file=str(file)))]
    until(tmp_path.joinpath(f"go.{handles[0].id}").exists)
    worker.renew()
    handles.append(worker.producer.enqueue(HoldUntil(file=str(file))))
    until(tmp_path.joinpath(f"go.{handles[1].id}").exists)

    worker.process.send_signal(signal.SIGTERM)
    until(lambda: f"worker {worker.processes()[-1].name} stops" in worker.text())
    if signals == 1:
        file.touch()
    else:
        worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(WAIT_SECONDS) == 0
    assert not any(map(runs, [row.pid for row in worker.processes()]))
    states = {handle.status().state for handle in handles}
    assert states == ({State.SUCCEEDED} if signals == 1 else {State.QUEUED})
    assert [handle.status().attempt for handle in handles] == ([1, 1] if signals == 1 else [0, 0])


def test_a_successor_that_fails_to_start_leaves_the_old_process_at_work(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    monkeypatch.setenv(BROKEN_WHILE, str(broken))
    worker = start("--max-jobs", "5")
    broken.touch()
    until(lambda: work_one(worker) and "ended with exit code 2 before it was ready" in worker.text())
    assert "a broken deploy" in worker.text()
    until(lambda: work_one(worker) and worker.text().count("before it was ready") > 1, "another try")
    assert "[error" in worker.text()
    assert [row.stopped_at for row in worker.processes()] == [None]
    broken.unlink()
    until(lambda: work_one(worker) and worker.renewals() == 1, "the successor")
    until(lambda: worker.processes()[0].stopped_at is not None)


def work_one(worker: Renewing) -> bool:
    from engine_jobs import Add

    worker.producer.enqueue(Add(a=1)).wait(timeout=90)
    return True


def test_processes_drain_when_their_parent_is_killed(start: Start, tmp_path: Path) -> None:
    worker = start("--max-jobs", "5")
    file = tmp_path / "go"
    job = worker.producer.enqueue(HoldUntil(file=str(file)))
    until(tmp_path.joinpath(f"go.{job.id}").exists)
    worker.process.kill()
    worker.process.wait()
    until(lambda: f"worker {worker.name}-1 stops" in worker.text())
    file.touch()
    until(lambda: job.status().state is State.SUCCEEDED)
    until(lambda: not any(map(runs, [row.pid for row in worker.processes()])))


def test_a_killed_process_ends_its_worker_with_the_signal_and_is_on_record(start: Start) -> None:
    worker = start("--max-jobs", "1000")
    os.kill(worker.processes()[0].pid, signal.SIGKILL)
    assert worker.process.wait(WAIT_SECONDS) == 128 + signal.SIGKILL
    assert worker.processes()[0].ended == "SIGKILL"
