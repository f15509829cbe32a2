"""Processes of isolated handlers: all that a child started ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.polling import WAIT_SECONDS, until
from support.servers.processes import runs
from workers.executor.attempt.child.isolated_jobs import Hurried, Patient, Run
from workers.executor.bench import Bench


def pids(file: Path) -> list[int]:
    """Ids of the processes that a handler announced, once it has."""
    until(file.exists)
    return [int(pid) for pid in file.read_text().split()]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "pids"
    yield file
    for pid in file.read_text().split() if file.exists() else ():
        if runs(int(pid)):
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("case", ["family", "deaf_family"])
def test_a_cancelled_child_takes_its_own_children_along(bench: Bench, file: Path, case: str) -> None:
    bench.worker()
    handle = bench.producer.enqueue(Patient(case=case, file=str(file)))
    family = pids(file)
    handle.cancel()
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    until(lambda: not any(map(runs, family)))
    until(bench.idle)


@pytest.mark.parametrize("case", ["family", "deaf_family"])
def test_a_child_past_its_timeout_takes_its_own_children_along(bench: Bench, file: Path, case: str) -> None:
    bench.worker()
    status = bench.run(Hurried(case=case, file=str(file)))
    assert status.state == "retrying"
    assert "timeout of 0:00:02" in status.error
    if file.exists():  # a busy machine may not have come that far
        assert until(lambda: not any(map(runs, pids(file))))


def test_a_child_that_is_killed_takes_its_own_children_along(bench: Bench, file: Path) -> None:
    bench.worker()
    handle = bench.producer.enqueue(Run(case="family", file=str(file)))
    family = pids(file)
    os.kill(family[0], signal.SIGKILL)
    until(lambda: handle.status().state == "retrying")
    assert "was killed by SIGKILL" in handle.status().error
    until(lambda: not any(map(runs, family)))


@pytest.mark.parametrize(("case", "state"), [("dying_family", "retrying"), ("orphans", "succeeded")])
def test_processes_that_a_child_leaves_end_with_it(bench: Bench, file: Path, case: str, state: str) -> None:
    bench.worker()
    status = bench.run(Run(case=case, file=str(file)))
    assert status.state == state
    until(lambda: not any(map(runs, pids(file))))


def test_a_child_that_answers_a_sigterm_in_time_has_succeeded(bench: Bench, file: Path) -> None:
    worker = bench.worker()
    handle = bench.producer.enqueue(Patient(case="last_words", file=str(file)))
    pids(file)
    worker.stop(grace_seconds=0)
    bench.workers.clear()
    status = handle.status()
    assert (status.state, status.result) == ("succeeded", "in time")


def test_a_sigterm_from_outside_is_an_interruption_if_the_worker_drains_too(bench: Bench, file: Path) -> None:
    worker = bench.worker()
    handle = bench.producer.enqueue(Patient(case="family", file=str(file)))
    child = pids(file)[0]
    worker.executor._runtime.capacity.close()
    os.kill(child, signal.SIGTERM)
    until(lambda: handle.status().state == "queued")
    assert handle.status().failures == 0


def test_a_sigterm_from_outside_is_a_failed_attempt_otherwise(bench: Bench, file: Path) -> None:
    bench.worker()
    handle = bench.producer.enqueue(Run(case="family", file=str(file)))
    os.kill(pids(file)[0], signal.SIGTERM)
    until(lambda: handle.status().state == "retrying")
    assert "was killed by SIGTERM" in handle.status().error


def test_a_killed_fork_server_costs_no_attempt_and_the_next_job_starts_another(bench: Bench) -> None:
    bench.worker()
    assert bench.run(Run(case="kill_fork_server")).result == "ran"
    assert bench.run(Run(case="asyncio_run")).result == "ran"
    status = bench.run(Run(case="kill_fork_server_and_itself"))
    assert status.state == "retrying"
    assert "its fork server had died, too" in status.error
    assert bench.run(Run(case="asyncio_run")).result == "ran"


def test_a_killed_worker_takes_its_children_and_theirs_along(tmp_path: Path, file: Path) -> None:
    command = [sys.executable, "-m", "workers.executor.attempt.child.killed_worker", str(tmp_path), str(file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    worker = subprocess.Popen(command, env=environment, cwd=tmp_path)
    try:
        until(lambda: file.exists() or worker.poll() is not None)
        family = pids(file)
        assert all(map(runs, family))
        worker.kill()
        worker.wait()
        until(lambda: not any(map(runs, family)))
    finally:
        worker.kill()
        worker.wait()
