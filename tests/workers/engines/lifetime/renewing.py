"""Workers that renew themselves: `penstock worker` with limits, its processes, and how each was followed."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from engine_jobs import Add
from running import Running
from support.polling import until
from support.servers.shared import broker_url, delete_queues

from penstock.ledger.sql.tables import workers
from penstock.producers.handles.handles import JobHandle
from penstock.workers.local.up.redis_server import RedisServer


class Renewing(Running):
    """`penstock worker` with options such as `--max-jobs 50`."""

    def __init__(self, *arguments: Any, options: tuple[str, ...], **more: Any) -> None:
        super().__init__(*arguments, modules=("renewal_jobs",), **more)
        self.options = options

    def launch(self, environment: dict[str, str], log: Any) -> subprocess.Popen[bytes]:
        words = ["worker", "--engine", self.engine, "--queues", "engines", "--concurrency", "5", "--name", self.name]
        words += ["--import", "engine_jobs", "--import", "renewal_jobs", *self.options]
        command = [sys.executable, "-m", "penstock", *words]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)

    def text(self) -> str:
        return self.log.read_text()

    def processes(self) -> list[sa.Row[Any]]:
        """Processes on record, the first of them first."""
        rows = self.database.read(lambda connection: connection.execute(sa.select(workers)).all())
        return sorted(rows, key=lambda row: int(row.name.rpartition("-")[2]))

    def renewals(self) -> int:
        """How often a successor has followed."""
        return len(re.findall(r"is ready; worker process \d+ .* finishes its jobs", self.text()))

    def work(self, jobs: int) -> list[JobHandle[Any]]:
        """Run so many jobs, few at a time, so that a process that has asked for a successor does not do them all."""
        handles = []
        for first in range(0, jobs, 5):
            batch = self.producer.enqueue_many([Add(a=number) for number in range(first, min(first + 5, jobs))])
            for handle in batch:
                handle.wait(timeout=90)
            due = self.text().count("renews itself")
            until(lambda due=due: self.renewals() >= due, "the successor", unless=self.process.poll)  # type: ignore[misc]
            handles += batch
        return handles

    def renew(self) -> None:
        """Work until one more successor has followed."""
        before = self.renewals()
        while self.renewals() == before:
            self.work(5)


PAIRS = [("celery", "rabbitmq"), ("dramatiq", "redis")]
"""Each engine and each broker once: the parent knows neither, and the tests of stopping have all pairs."""
Start = Callable[..., Renewing]
"""`start(*options, **environment)`: starts such a worker."""


def starting(pair: tuple[str, str], redis_server: RedisServer, folder: Path, *always: str) -> Iterator[Start]:
    """Workers of this engine on this broker, stopped afterwards, with what they logged.

    Arguments:
        always: options of each.
    """
    engine, broker = pair
    prefix = f"t{uuid.uuid4().hex[:10]}"
    started: list[Renewing] = []

    def start(*options: str, **environment: str) -> Renewing:
        url = broker_url(broker, redis_server)
        worker = Renewing(engine, url, prefix, folder, options=(*always, *options), environment=environment)
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in started:
        print(worker.text())
        worker.stop()
    delete_queues(broker, prefix)


def exists(path: Path) -> bool:
    return path.exists()
