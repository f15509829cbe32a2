"""How a worker ends: it lets its jobs finish, or gives them back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine_jobs import Isolated, Sleep
from running import Running, running
from stubborn_jobs import Hold, HoldThread
from support.polling import WAIT_SECONDS, until
from support.servers.databases import MariadbServer, PostgresServer
from support.servers.processes import runs

from penstock.schemas.states import State
from penstock.workers.engines.host import EXIT_UNFINISHED
from penstock.workers.local.up.redis_server import RedisServer


def test_a_worker_whose_process_stood_still_fetches_again(own_worker: Running) -> None:
    own_worker.producer.enqueue(Sleep(seconds=0)).wait(timeout=WAIT_SECONDS)
    own_worker.process.send_signal(signal.SIGSTOP)
    time.sleep(3)  # longer than the watchdog takes for a handler that blocks
    own_worker.process.send_signal(signal.SIGCONT)
    looks_until = time.monotonic() + 3  # within these the watchdog has looked several times
    until(lambda: time.monotonic() > looks_until)
    assert own_worker.producer.enqueue(Sleep(seconds=0)).wait(timeout=WAIT_SECONDS).state is State.SUCCEEDED
    assert "blocked the event loop" not in own_worker.log.read_text()


def test_a_remote_shutdown_lets_running_jobs_finish(own_worker: Running) -> None:
    handle = own_worker.producer.enqueue(Sleep(seconds=1.5))
    until(lambda: handle.id in own_worker.active(), "the running job")
    own_worker.tell("shutdown")
    assert own_worker.process.wait(60) == 0
    assert handle.status().state is State.SUCCEEDED


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_worker_in_a_thread_leaves_its_process_to_others(
    engine: str, redis_server: RedisServer, prefix: str, tmp_path: Path
) -> None:
    with running(engine, redis_server.url, prefix, tmp_path, run="run_as_guest") as worker:
        handle = worker.producer.enqueue(Sleep(seconds=0.5))
        until(lambda: handle.id in worker.active(), "the running job")
        worker.tell("shutdown")
        assert worker.process.wait(60) == 0
        assert handle.status().state is State.SUCCEEDED


def test_sigterm_drains_while_it_still_answers_and_a_second_one_gives_jobs_back(own_worker: Running) -> None:
    handle = own_worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.id in own_worker.active(), "the running job")
    own_worker.process.send_signal(signal.SIGTERM)
    until(lambda: own_worker.ask("stats")["ready"] is False, "the drain")
    assert own_worker.active() == [handle.id]

    own_worker.process.send_signal(signal.SIGTERM)
    assert own_worker.process.wait(60) == 0
    status = handle.status()
    assert status.state is State.QUEUED
    assert status.attempt == 0, "an interruption costs no attempt"


def test_a_job_given_back_runs_on_the_next_worker(own_worker: Running) -> None:
    handle = own_worker.producer.enqueue(Sleep(seconds=3))
    until(lambda: handle.id in own_worker.active(), "the running job")
    for _ in range(2):
        own_worker.process.send_signal(signal.SIGINT)
    assert own_worker.process.wait(60) == 0
    own_worker.start()
    handle.wait(timeout=60)
    assert handle.status().attempt == 1


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
@pytest.mark.parametrize(("how", "exit_code"), [("thread", 0), ("pool", 0), ("swallow", 0), ("block", EXIT_UNFINISHED)])
def test_a_worker_ends_without_a_handler_that_does_not_stop_and_gives_its_job_back(
    start_worker: Callable[..., Running], engine: str, how: str, exit_code: int
) -> None:
    worker = start_worker(engine, "stubborn_jobs")
    file = worker.folder / "begun"
    job = HoldThread(file=str(file)) if how == "thread" else Hold(how=how, file=str(file))
    handle = worker.producer.enqueue(job)
    until(file.exists)
    for _ in range(2):
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # the second signal ends the grace
    assert worker.process.wait(WAIT_SECONDS) == exit_code, worker.log.read_text()
    status = handle.status()
    assert status.state is State.QUEUED
    assert status.attempt == 0, "an interruption costs no attempt"
    if how in ("swallow", "block"):
        assert handle.id in worker.log.read_text()


@pytest.mark.parametrize(("engine", "database"), [("celery", "postgres"), ("dramatiq", "mariadb")])
def test_a_worker_whose_ledger_answers_nothing_ends_and_names_its_jobs_which_run_elsewhere(
    engine: str, database: str, redis_server: RedisServer, prefix: str, tmp_path: Path
) -> None:
    server = PostgresServer() if database == "postgres" else MariadbServer(tmp_path / "mariadb")
    with ExitStack() as stack:
        stack.callback(server.close)
        server.start()
        stack.callback(server.resume)
        lease = {"PENSTOCK_LEASE_SECONDS": "3"}
        worker = Running(engine, redis_server.url, prefix, tmp_path, database_url=server.url, environment=lease)
        stack.callback(worker.stop)
        worker.start()
        handle = worker.producer.enqueue(Sleep(seconds=300))
        until(lambda: handle.id in worker.active(), "the running job")
        server.stall()
        for _ in range(2):
            worker.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)  # the second signal ends the grace
        assert worker.process.wait(WAIT_SECONDS) == EXIT_UNFINISHED, worker.log.read_text()
        assert f"not over after the grace; others run them: {handle.id} (" in worker.log.read_text()
        server.resume()
        worker.start()
        until(lambda: handle.id in worker.active(), "the job, once the lease of its worker is over")


def test_a_killed_worker_takes_the_processes_of_isolated_handlers_along(own_worker: Running, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    handle = own_worker.producer.enqueue(Isolated(file=str(file)))
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    until(lambda: f"isolated job {handle.id} runs" in own_worker.log.read_text())
    family = [int(pid) for pid in file.read_text().split()]
    own_worker.process.kill()
    own_worker.process.wait()
    until(lambda: not any(map(runs, family)))
