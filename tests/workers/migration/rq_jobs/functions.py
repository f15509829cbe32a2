"""Functions of RQ's jobs, which run in the process of the test."""

from __future__ import annotations

import time
from typing import Any

from redis import Redis
from rq import Retry, get_current_job
from rq.job import Job

from penstock.workers.executor.attempt.errors import Terminated

runs: list[str] = []
"""Ids of RQ's jobs, in the order in which they ran."""


def run() -> Job:
    job = get_current_job()
    assert job is not None
    runs.append(job.id)
    return job


def add(a: int, b: int = 0) -> int:
    run()
    return a + b


def thing() -> object:
    """Return what JSON cannot hold."""
    run()
    return LookupError(1)


def fail() -> None:
    run()
    raise ValueError("boom")


def fail_once() -> str:
    if runs.count(run().id) == 1:
        raise ValueError("boom")
    return "done"


def retry(times: int = 1) -> Any:
    return Retry(max=1) if runs.count(run().id) <= times else "done"


def sleep() -> None:
    run()
    for _ in range(9000):  # the limit of a thread ends it between two steps
        time.sleep(0.01)


def terminated() -> None:
    """Ends like a function in a process whose worker ends it."""
    raise Terminated("its child process got SIGTERM")


def until_abandoned() -> float:
    """Seconds until RQ takes this job for abandoned."""
    job = run()
    [(_, expiry)] = job.connection.zrange(job.started_job_registry.key, 0, -1, withscores=True)
    return float(expiry) - time.time()


def broken_callback(job: Job, connection: Redis, result: Any, *_: Any) -> None:
    raise RuntimeError(f"no callback for {result}")
