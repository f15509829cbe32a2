"""A worker whose event loop is blocked keeps the jobs that run, and releases the others. One whose claim waits for a
lock keeps its lease."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from blocking_jobs import BlockUntil, HoldUntil, WriteLine, WriteUntracked
from engine_jobs import QUEUE, Add
from running import HERE, PAIRS, Running
from support.ledgers import set_up
from support.polling import WAIT_SECONDS, until
from support.servers.shared import broker_url, delete_queues
from support.stack import Stack

from penstock.schemas.states import State
from penstock.workers.local.up.redis_server import RedisServer


@pytest.fixture(params=PAIRS, ids="-".join)
def two_workers(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[tuple[Running, Running]]:
    """Two workers of one installation; the first runs already."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    url = broker_url(broker, redis_server)
    workers = [Running(engine, url, prefix, tmp_path, modules=("blocking_jobs",)) for _ in range(2)]
    try:
        yield workers[0].start(), workers[1]
    finally:
        (tmp_path / "end").touch()
        workers[0].stop()
        if hasattr(workers[1], "process"):
            workers[1].stop()
        else:
            workers[1].close()
        delete_queues(broker, prefix)


def test_jobs_that_a_blocked_worker_has_not_started_run_on_another(
    two_workers: tuple[Running, Running], tmp_path: Path
) -> None:
    first, second = two_workers
    enqueue = first.producer.enqueue
    end, ran, before = tmp_path / "end", tmp_path / "ran", tmp_path / "before"

    def runs() -> list[tuple[str, int]]:
        pairs = (line.split() for line in (ran.read_text().splitlines() if ran.exists() else ()))
        return [(job_id, int(pid)) for job_id, pid in pairs]

    short = [WriteLine(file=str(before))] * 300  # by their pace the worker fetches and claims ahead
    slots = [*[HoldUntil(file=str(end))] * 4, BlockUntil(file=str(end))]
    lines = [kind(file=str(ran)) for kind in (WriteLine, WriteUntracked) * 4]
    handles = first.producer.enqueue_many([*short, *slots, *lines])
    running, waiting = handles[300:305], handles[305:]
    until(lambda: "has blocked the event loop" in first.log.read_text())
    second.start()
    waiting.append(enqueue(WriteLine(file=str(ran))))
    until(lambda: len(runs()) >= 9)
    assert "that have not started go to other workers" in first.log.read_text()
    assert {handle.status().state for handle in running} == {State.RUNNING}
    assert sorted(job_id for job_id, _ in runs()) == sorted(handle.id for handle in waiting), "each has run once"
    assert {pid for _, pid in runs()} == {second.process.pid}, "also the untracked ones, which are not suspects"
    for handle in waiting[::2]:
        status = handle.wait(timeout=WAIT_SECONDS)
        assert (status.state, status.attempt, status.crashes) == (State.SUCCEEDED, 1, 0)

    end.touch()
    for handle in running:
        assert handle.wait(timeout=WAIT_SECONDS).state == State.SUCCEEDED
    until(lambda: "the event loop turns again" in first.log.read_text())
    until(lambda: enqueue(WriteLine(file=str(ran))) and first.process.pid in {pid for _, pid in runs()}, pause=0.1)
    assert set(Counter(job_id for job_id, _ in runs()).values()) == {1}


@pytest.mark.parametrize(
    ("database", "lock"),
    [
        pytest.param("postgres", "LOCK TABLE penstock_jobs IN EXCLUSIVE MODE", marks=pytest.mark.postgres),
        pytest.param("mariadb", "LOCK TABLES penstock_jobs READ", marks=pytest.mark.mariadb),
    ],
)
def test_a_worker_whose_claim_waits_for_a_lock_keeps_its_lease(
    database: str, lock: str, redis_url: str, prefix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = set_up(request.getfixturevalue(f"{database}_url"))
    stack = Stack("dramatiq", redis_url, prefix, tmp_path, lease_seconds=3.0, database_url=url)
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)

    def last_beat() -> datetime:
        [worker] = stack.live_workers()
        return worker.last_beat

    try:
        command = ["worker", "--engine", "dramatiq", "--queues", QUEUE, "--concurrency", "5", "--import", "engine_jobs"]
        stack.run(command, PYTHONPATH=str(HERE / "apps"))
        until(stack.live_workers, "a worker that lives")
        with engine.connect() as locking:
            locking.exec_driver_sql(lock)
            handle = stack.producer.enqueue(Add(a=1))
            before = last_beat()
            until(lambda: last_beat() - before > 3 * stack.settings.lease)
            assert stack.row(handle.id) is None, "it is not claimed"
        assert handle.wait(timeout=WAIT_SECONDS).state == State.SUCCEEDED
    finally:
        engine.dispose()
        stack.stop()
