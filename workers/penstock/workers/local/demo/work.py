"""Work of the demo: its jobs, followed to their end and checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import PenstockError
from penstock.ledger.queries.status import JobStatus
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers
from penstock.producers.handles.handles import JobHandle
from penstock.schemas.states import State
from penstock.workers.local.demo.checks import CheckFailed, expect
from penstock.workers.local.demo.narrator import Narrator, Row
from penstock.workers.local.up.signals import Stopping

LOOK_SECONDS = 0.1


@dataclass
class Work:
    """Jobs that make one row of the table.

    Attributes:
        check: given the results, in the order of the handles, opens what the jobs made and returns how many of what.
            Raises CheckFailed.
        where: to look, in the demo's folder.
        state: in which each must end.
        since: when its time began to count; None: when it was enqueued.
        timed: whether its time means anything.
    """

    what: str
    handles: Sequence[JobHandle]
    check: Callable[[Sequence[Any]], str]
    where: str
    state: State = State.SUCCEEDED
    since: datetime | None = None
    timed: bool = True
    statuses: list[JobStatus] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.statuses) and all(status.final for status in self.statuses)


def follow(
    narrator: Narrator, database: Database, tasks: Sequence[Work], timeout_seconds: float, stopping: Stopping
) -> list[Row]:
    """Show the works' progress until all have ended or the timeout; returns a row for each.

    Raises:
        KeyboardInterrupt: `stopping` was set.
    """
    deadline = time.monotonic() + timeout_seconds
    rows: dict[int, Row] = {}
    with narrator.bars():
        while len(rows) < len(tasks):
            late = time.monotonic() > deadline
            for number, work in enumerate(tasks):
                if number in rows:
                    continue
                work.statuses = [handle.status() for handle in work.handles]
                _update_bar(narrator, work)
                if work.ended or late:
                    rows[number] = judge(work, database)
                    narrator.finished(rows[number])
            stopping.pause(LOOK_SECONDS)
    return [rows[number] for number in range(len(tasks))]


def judge(work: Work, database: Database) -> Row:
    """Check the end states of the jobs and their results. Returns the row for the table."""
    engine, count, problem = engines_of(database, work.handles), "", None
    try:
        for status in work.statuses:
            why = f": {status.error}" if status.error else ""
            expect(status.state == work.state, f"job {status.id} is {status.state}, not {work.state}{why}")
        count = work.check([status.result for status in work.statuses])
    except CheckFailed as error:
        problem = str(error)
    except (PenstockError, OSError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"  # such as a missing file
    return Row(work.what, engine, count, _seconds(work) if work.timed else None, work.where, problem)


def engines_of(database: Database, handles: Sequence[JobHandle]) -> str:
    """The engines whose workers ran the last attempts of the jobs."""
    ids = [handle.id for handle in handles]
    select = (
        sa.select(history.c.job_id, workers.c.engine)
        .join(workers, workers.c.name == history.c.worker)
        .where(history.c.job_id.in_(ids))
        .order_by(history.c.fence)
    )
    last = database.read(lambda connection: {row.job_id: row.engine for row in connection.execute(select)})
    return ", ".join(sorted(set(last.values())))


def _seconds(work: Work) -> float | None:
    begun = [work.since or status.enqueued_at for status in work.statuses if status.enqueued_at is not None]
    ended = [status.finished_at for status in work.statuses if status.finished_at is not None]
    return (max(ended) - min(begun)).total_seconds() if begun and ended else None


def _update_bar(narrator: Narrator, work: Work) -> None:
    if len(work.statuses) == 1:
        (status,) = work.statuses
        progress = status.progress
        if progress is not None and not status.final:
            narrator.update(work.what, progress.done, progress.total, progress.note or "")
        else:
            done = progress.done if progress is not None else 1
            narrator.update(work.what, done if status.final else 0, done if status.final else None, str(status.state))
    else:
        ended = sum(status.final for status in work.statuses)
        narrator.update(work.what, ended, len(work.statuses))
