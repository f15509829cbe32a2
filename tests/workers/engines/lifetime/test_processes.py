"""Several processes of one worker, forked off one that has imported the handlers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from engine_jobs import Add
from renewal_jobs import HoldUntil
from renewing import PAIRS, Renewing, Start, starting
from support.polling import WAIT_SECONDS, until
from support.servers.scrape import get, scrape

from penstock.config.process.probe import probe
from penstock.ledger.sql.tables import jobs
from penstock.producers.handles.handles import JobHandle
from penstock.workers.local.up.redis_server import RedisServer, free_port

JOBS = 40


@pytest.fixture(params=PAIRS, ids="-".join)
def start(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Start]:
    """`start(*options, **environment)`: a worker with two processes of five slots each, stopped afterwards."""
    yield from starting(request.param, redis_server, tmp_path, "--processes", "2")


def hold_all_slots(worker: Renewing, file: Path) -> list[int]:
    """Fill the slots of both processes with jobs that run until the file exists. Returns the processes' ids.

    There are more jobs than slots, since each process fetches ahead.
    """
    worker.producer.enqueue_many([HoldUntil(file=str(file)) for _ in range(JOBS)])

    def holders() -> list[int] | None:
        with worker.database.engine.connect() as connection:
            names = connection.execute(sa.select(jobs.c.worker).where(jobs.c.state == "running")).scalars().all()
        pids = {row.pid for row in worker.processes() if row.name in names}
        return sorted(pids) if len(names) >= 10 and len(pids) == 2 else None

    return until(holders, "every slot in use")


def test_processes_share_the_work_and_the_port(start: Start, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "go"
    worker = start(PENSTOCK_HTTP_PORT=str(port))
    pids = hold_all_slots(worker, file)
    assert worker.process.pid not in pids
    assert {row.name for row in worker.processes()} == {f"{worker.name}-{number}" for number in (1, 2)}
    assert get(port, "/live") == get(port, "/ready") == (200, "ok\n")
    until(lambda: scrape(port).value("penstock_worker_slots", state="used") == 10, "both processes' slots")
    for number in ("1", "2"):
        assert scrape(port).value("penstock_worker_slots", state="used", process=number) == 5
    file.touch()
    until(lambda: scrape(port).value("penstock_jobs_total", outcome="succeeded") == JOBS + 1, "both processes' jobs")


@pytest.mark.parametrize("start", [("celery", "redis"), ("dramatiq", "redis")], ids="-".join, indirect=True)
def test_all_processes_share_one_lease_keeper(start: Start) -> None:
    worker = start()
    pids = until(lambda: len(rows := worker.processes()) == 2 and {row.pid for row in rows}, "both processes")
    [first] = keepers({worker.process.pid, *pids})
    os.kill(first, signal.SIGKILL)
    until(lambda: set(keepers({worker.process.pid, *pids})) - {first}, "another one")


def keepers(parents: set[int]) -> list[int]:
    """Lease keepers that these processes have started, and that run."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            stat, command = (path / "stat").read_text().rpartition(")")[2].split(), (path / "cmdline").read_text()
            if int(stat[1]) in parents and "lease_keeper_process" in command:
                pids.append(int(path.name))
    return pids


def test_one_that_hangs_makes_the_worker_not_live(start: Start) -> None:
    port = free_port()
    worker = start(PENSTOCK_HTTP_PORT=str(port))
    pids = until(lambda: len(rows := worker.processes()) == 2 and [row.pid for row in rows], "both processes")
    until(lambda: get(port, "/live")[0] == 200)
    os.kill(pids[0], signal.SIGSTOP)
    try:
        until(lambda: "it does not answer" in get(port, "/live")[1], "the port's answer")
        assert not probe("live", pid=pids[0], timeout_seconds=0.2)[0]
    finally:
        os.kill(pids[0], signal.SIGCONT)
    until(lambda: get(port, "/live")[0] == 200)


def test_a_process_that_is_killed_is_started_again_and_its_jobs_run_again(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "go"
    worker = start()
    first, second = hold_all_slots(worker, file)
    os.kill(first, signal.SIGKILL)
    until(lambda: "has ended with SIGKILL; the next try is in 1 s" in worker.text(), "the reason in the log")
    rows = until(lambda: len(rows := worker.processes()) == 3 and rows, "another process", unless=worker.process.poll)
    assert rows[-1].name == f"{worker.name}-3"
    file.touch()

    def outcomes() -> set[tuple[str, int]]:
        with worker.database.engine.connect() as connection:
            rows = connection.execute(
                sa.select(jobs.c.state, jobs.c.crashes).where(jobs.c.kind == "renewal.hold_until")
            )
            return {(row.state, row.crashes) for row in rows}

    until(lambda: outcomes() == {("succeeded", 0), ("succeeded", 1)}, "all jobs, some of them after a crash")
    assert {second, rows[-1].pid} == {row.pid for row in worker.processes() if row.stopped_at is None} - {first}


def test_a_signal_drains_all_processes(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "go"
    worker = start()
    hold_all_slots(worker, file)
    worker.process.send_signal(signal.SIGTERM)
    until(lambda: worker.text().count(" stops [") + worker.text().count(" stops\n") >= 2, "both drains")
    assert worker.process.poll() is None
    file.touch()
    assert worker.process.wait(WAIT_SECONDS) == 0
    assert all(row.stopped_at for row in worker.processes())
    with worker.database.engine.connect() as connection:
        assert set(connection.execute(sa.select(jobs.c.state)).scalars()) <= {"succeeded", "queued"}


def test_processes_end_with_their_parent(start: Start) -> None:
    worker = start()
    until(lambda: len(worker.processes()) == 2, "both processes")
    worker.process.kill()
    worker.process.wait()
    until(lambda: all(row.stopped_at for row in worker.processes()), "the end of both")


@pytest.mark.timeout(400)
def test_max_jobs_replaces_one_process_after_the_other(start: Start) -> None:
    worker = start("--max-jobs", "20")
    handles: list[JobHandle[Any]] = []

    def renewed_twice() -> bool:
        """There is always more: one process may do all until its successor is ready."""
        handles.extend(worker.producer.enqueue_many([Add(a=n) for n in range(10)]))
        return worker.renewals() >= 2

    until(renewed_twice, "two renewals", pause=0.2)
    for handle in handles:
        handle.wait(timeout=WAIT_SECONDS)
    with worker.database.engine.connect() as connection:
        rows = connection.execute(sa.select(jobs.c.state, jobs.c.attempt, jobs.c.crashes)).all()
    assert {(row.state, row.attempt, row.crashes) for row in rows} == {("succeeded", 1, 0)}


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_worker_none_of_whose_processes_can_start_ends(
    engine: str, redis_server: RedisServer, prefix: str, tmp_path: Path
) -> None:
    options = ("--processes", "2", "--max-memory", "1MiB")
    worker = Renewing(engine, redis_server.url, prefix, tmp_path, options=options)
    try:
        with worker.log.open("wb") as log:
            worker.process = worker.launch({**os.environ, **worker.variables()}, log)
        assert worker.process.wait(WAIT_SECONDS) == 2
    finally:
        worker.stop()
    assert "max_memory is 1.0 MiB, but this worker uses" in worker.text()
    assert "the next try" not in worker.text()
