from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.results import Result
from support.ledgers import upgraded
from support.polling import until
from workers.migration.rq_jobs import functions

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, jobs
from penstock.schemas.jobs.kind import registry
from penstock.workers.engines.inline import Inline
from penstock.workers.engines.rq import adopt
from penstock.workers.engines.rq.intake import RqQueues
from penstock.workers.handlers.registry import handlers
from penstock.workers.local.up.redis_server import RedisServer

DATABASE = 9
"""The number of RQ's database on the tests' Redis."""


@pytest.fixture
def rq_url(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """RQ's Redis, empty: its keys have no prefix."""
    url = redis_server.url.rpartition("/")[0] + f"/{DATABASE}"
    with Redis.from_url(url) as connection:
        connection.flushdb()
    monkeypatch.setenv("RQ_REDIS_URL", url)
    return url


class Adopted:
    """RQ's queue `slow`, emptied by a service whose rounds the test runs, and an inline worker, which starts then.

    Attributes:
        queue: RQ's, as the application has it.
        url: of RQ's Redis.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self.url, self.connection = url, Redis.from_url(url)
        self.queue = Queue("slow", connection=self.connection)
        self.service = RqQueues(settings, Database(upgraded(settings.database_url)), adopt("slow", settings))
        self.inline = Inline(settings, queues=["slow"])
        self._started = False
        self.service._sender.close()
        self.service._sender = self.inline.broker

    def start(self) -> None:
        if not self._started:
            self.inline.start()
            self._started = True

    def run(self) -> None:
        """Move what waits into our queue, and run it."""
        self.service.run_once()
        self.start()
        self.inline.drain()

    def until_ended(self, job: Job, state: str) -> Any:
        """Run until RQ's job has this state for RQ. Returns the row of its newest job in the ledger."""
        until(lambda: self.run() or job.get_status() == state)
        return self.rows(job)[-1]

    def rows(self, job: Job) -> list[Any]:
        """The ledger's jobs of a job of RQ's, by age."""
        return self._read(sa.select(jobs).where(jobs.c.key == job.id).order_by(jobs.c.id))

    def attempts(self, row: Any) -> list[Any]:
        return self._read(sa.select(attempts).where(attempts.c.job_id == row.id).order_by(attempts.c.fence))

    def _read(self, select: Any) -> list[Any]:
        return list(self.inline.database.read(lambda connection: connection.execute(select).all()))

    def results(self, job: Job) -> list[str]:
        """Types of RQ's results of a job, the oldest first."""
        return [Result.Type(result.type).name for result in reversed(job.results())]


@pytest.fixture
def adopted(rq_url: str, tmp_path: Path) -> Iterator[Adopted]:
    functions.runs.clear()
    adopted = Adopted(Settings(database_url=f"sqlite:///{tmp_path}/ledger.db", lease_seconds=2), rq_url)
    yield adopted
    adopted.start()  # only what has started can stop
    adopted.inline.stop()
    adopted.service.close()
    adopted.connection.close()
    kind = registry["rq.slow"]
    handlers.discard(kind)
    registry.discard(kind)
