"""Workers that renew themselves: `penstock worker` with limits, its processes, and how each was followed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from engine_jobs import Add
from running import Running
from support.polling import until

from penstock.ledger.sql.tables import workers
from penstock.producers.handles.handles import JobHandle


class Renewing(Running):
    """`penstock worker` with options such as `--max-jobs 50`."""

    def __init__(self, *arguments: Any, options: tuple[str, ...], **more: Any) -> None:
        super().__init__(*arguments, modules=("renewal_jobs",), **more)
        self.options = options

    def command(self) -> list[str]:
        words = ["worker", "--engine", self.engine, "--queues", "engines", "--concurrency", "5", "--name", self.name]
        words += ["--import", "engine_jobs", "--import", "renewal_jobs", *self.options]
        return [sys.executable, "-m", "penstock", *words]

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


def exists(path: Path) -> bool:
    return path.exists()
