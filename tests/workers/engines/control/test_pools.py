"""Workers of both engines on both brokers with the pool of processes, and what they answer about it."""

from __future__ import annotations

import os
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from pool_engine_jobs import Process
from running import PAIRS, running
from support.polling import WAIT_SECONDS, until
from support.servers.processes import runs
from support.servers.shared import broker_url, delete_queues

from penstock.ledger.members.overview import MemberStatus, read_members
from penstock.ledger.sql.database import Database
from penstock.workers.local.up.redis_server import RedisServer


def with_pool(database: Database, pids: tuple[int, ...]) -> list[MemberStatus]:
    """The workers on record with these processes in their pool."""
    members = read_members(database, timedelta(seconds=30))
    return [status for status in members if status.member.pool_pids == pids]


@pytest.mark.parametrize(("engine", "broker"), PAIRS, ids=map("-".join, PAIRS))
def test_a_pool_runs_jobs_and_is_in_the_worker_s_statistics(
    engine: str, broker: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    prefix = f"t{uuid.uuid4().hex[:10]}"
    options = {"modules": ("pool_engine_jobs",), "environment": {"PENSTOCK_POOL": "processes"}}
    with running(engine, broker_url(broker, redis_server), prefix, tmp_path, **options) as worker:
        pool = worker.ask("stats")["pool"]
        assert pool["kind"] == "processes"
        assert pool["max-concurrency"] == len(pool["processes"]) == 5
        assert worker.producer.enqueue(Process()).wait(WAIT_SECONDS).result in pool["processes"]
        crashed = worker.producer.enqueue(Process(ends=True))
        until(lambda: crashed.status().state == "scheduled")
        assert "was killed by SIGKILL" in crashed.status().error
        until(lambda: len(worker.ask("stats")["pool"]["processes"]) == 5)
        processes = worker.ask("stats")["pool"]["processes"]
        assert os.getpid() not in processes
        assert worker.producer.enqueue(Process()).wait(WAIT_SECONDS).result in processes
        [member] = until(lambda: with_pool(worker.database, tuple(processes)))
        assert member.fields()["pool"] == {"kind": "processes", "pids": processes}
    until(lambda: not any(map(runs, processes)))
    delete_queues(broker, prefix)
