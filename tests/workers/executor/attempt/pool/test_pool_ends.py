"""Ends of the processes of the pool, and of the jobs in them: crashes, time limits, cancelling, wear."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.polling import WAIT_SECONDS, until
from support.servers.processes import runs
from workers.executor.attempt.pool.pool_jobs import Foreign, Limited, Plain
from workers.executor.attempt.pool.test_pool import pids, results
from workers.executor.bench import Bench

from penstock.ledger.sql.tables import attempts


def announced(file: Path) -> int:
    """The process that a handler runs in, once it has said so."""
    until(file.exists)
    return int(file.read_text())


@pytest.mark.parametrize(
    ("case", "how"), [("kill", "was killed by SIGKILL (out of memory?)"), ("exit", "ended with exit code 4")]
)
def test_the_end_of_a_process_is_a_crash_of_its_job_alone(
    pool_bench: Bench, tmp_path: Path, case: str, how: str
) -> None:
    file = tmp_path / "pid"
    other = pool_bench.producer.enqueue(Plain(case="sleep", file=str(file)))
    neighbour = announced(file)
    status = pool_bench.run(Plain(case=case))
    assert status.state == "scheduled"
    assert how in status.error
    until(lambda: len(pids(pool_bench)) == 2)
    assert neighbour in pids(pool_bench)
    assert other.status().state == "running"
    other.cancel()
    assert other.wait(WAIT_SECONDS).state == "cancelled"


def test_a_crash_costs_no_attempt_and_the_last_one_is_a_dead_letter(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_crashes=1)
    handle = bench.producer.enqueue(Plain(case="kill"))
    status = handle.wait(WAIT_SECONDS)
    assert status.state == "dead"
    assert "crashed 1 times" in status.error
    [row] = bench.rows(attempts, attempts.c.job_id == handle.id)
    assert row.outcome == "crashed"


def test_a_process_that_writes_garbage_fails_its_job_and_is_replaced(pool_bench: Bench) -> None:
    before = pids(pool_bench)
    status = pool_bench.run(Plain(case="garbage"))
    assert status.state == "retrying"
    assert "wrote to its pipe something that is not a message" in status.error
    until(lambda: len(pids(pool_bench)) == 2)
    assert pids(pool_bench) != before


def test_a_process_that_is_killed_while_it_is_idle_is_replaced(
    pool_bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    until(lambda: len(pids(pool_bench)) == 2)
    victim, other = pids(pool_bench)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(pids(pool_bench)) == 2 and victim not in pids(pool_bench))
    assert other in pids(pool_bench)
    until(lambda: "a process of the pool ended without a job, and is replaced" in caplog.text)
    assert results(pool_bench, "none", "none") == [None, None]


def test_the_soft_limit_is_raised_where_the_handler_is_and_the_process_stays(pool_bench: Bench) -> None:
    status = pool_bench.run(Limited(case="soft"))
    assert status.result[0::2] == ["in good order", True]
    assert status.result[1] in pids(pool_bench)
    assert pool_bench.run(Foreign()).result == "reached its soft_timeout"
    status = pool_bench.run(Limited(case="soft, not caught"))
    assert status.state == "retrying"
    assert "SoftTimeLimitExceeded" in status.error


def test_the_hard_limit_kills_a_process_that_minds_nothing(pool_bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    status = pool_bench.run(Limited(case="deaf", file=str(file)))
    assert status.state == "retrying"
    assert "timeout of 0:00:01.500000; its process was killed" in status.error
    assert not runs(announced(file))
    until(lambda: len(pids(pool_bench)) == 2)


@pytest.mark.parametrize(("case", "stays"), [("sleep", True), ("deaf", False)])
def test_a_cancelled_job_ends_and_its_process_only_if_it_must(
    pool_bench: Bench, tmp_path: Path, case: str, stays: bool
) -> None:
    file = tmp_path / "pid"
    handle = pool_bench.producer.enqueue(Plain(case=case, file=str(file)))
    process = announced(file)
    handle.cancel()
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    assert file.with_suffix(".cleaned").exists() == stays
    until(lambda: len(pids(pool_bench)) == 2)
    assert (process in pids(pool_bench)) == stays


def test_a_worker_that_stops_interrupts_what_runs_and_ends_its_processes(pool_bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    handle = pool_bench.producer.enqueue(Plain(case="sleep", file=str(file)))
    announced(file)
    processes = pids(pool_bench)
    pool_bench.workers.pop().stop(grace_seconds=0)
    assert handle.status().state == "queued"
    assert handle.status().failures == 0
    until(lambda: not any(map(runs, processes)))


def test_a_process_is_replaced_after_its_jobs_and_its_successor_is_ready_first(
    make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.executor")
    bench = make_bench(max_jobs=5)
    processes: set[int] = set()

    def run_job() -> bool:
        processes.update(pid for pid, _, _ in results(bench, "use"))
        assert len(pids(bench)) >= 2
        return len(processes) >= 4

    until(lambda: len(pids(bench)) == 2)
    until(run_job)
    assert "of the pool is replaced: it has done" in caplog.text
    until(lambda: len(pids(bench)) == 2)


def test_a_process_is_replaced_for_its_memory(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_memory=150_000_000)
    [grown] = results(bench, "grow")
    until(lambda: grown not in pids(bench))
    until(lambda: len(pids(bench)) == 2)


def test_a_killed_worker_takes_its_processes_along(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = [sys.executable, "-m", "workers.executor.attempt.pool.killed_worker", str(tmp_path), str(file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    worker = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        processes = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(processes) == 2
        assert all(map(runs, processes))
        worker.kill()
        worker.wait()
        until(lambda: not any(map(runs, processes)))
    finally:
        worker.kill()
        worker.communicate()
