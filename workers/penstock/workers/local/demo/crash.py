"""A worker killed with SIGKILL in the middle of a job."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import sqlalchemy as sa

from penstock.ledger.queries.status import JobStatus
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers
from penstock.producers.enqueue.producer import Producer
from penstock.schemas.states import Outcome, State
from penstock.workers.local.demo.checks import CheckFailed, expect
from penstock.workers.local.demo.jobs import FillReservoir
from penstock.workers.local.demo.narrator import Narrator, Row
from penstock.workers.local.demo.work import LOOK_SECONDS, Work, judge
from penstock.workers.local.up.signals import Stopping
from penstock.workers.local.up.supervisor import Supervisor

NAME = "job of a killed worker"
KILL_AT_STEP = 6
RUNNING_SECONDS, END_SECONDS = 60.0, 120.0


def crash(
    narrator: Narrator, producer: Producer, database: Database, supervisor: Supervisor, folder: Path, stopping: Stopping
) -> Row:
    """Enqueue a job of some seconds, kill its worker under it, and see it end all the same."""
    job = FillReservoir(journal=str(folder / "reservoir.journal"))
    handle = producer.enqueue(job)
    killed: list[int] = []

    def check(results: object) -> str:
        return _check(database, job, handle.status(), killed)

    work = Work(NAME, [handle], check, "reservoir.journal")
    try:
        with narrator.bars():
            status = _wait(narrator, work, KILL_AT_STEP, RUNNING_SECONDS, stopping)
            killed.append(_kill(narrator, database, supervisor, status))
            _wait(narrator, work, None, END_SECONDS, stopping)
    except CheckFailed as error:
        return Row(NAME, "", "", None, work.where, str(error))
    return judge(work, database)


def _wait(narrator: Narrator, work: Work, step: int | None, seconds: float, stopping: Stopping) -> JobStatus:
    """Wait until the job is at a step, or has ended. Raises CheckFailed."""
    deadline = time.monotonic() + seconds
    while True:
        work.statuses = [work.handles[0].status()]
        status = work.statuses[0]
        done = status.progress.done if status.progress is not None else 0
        total = status.progress.total if status.progress is not None else None
        narrator.update(NAME, done, total, f"{status.state}, attempt {status.attempt}")
        if status.final and step is None:
            return status
        expect(not status.final, f"the job is {status.state} before its worker could be killed: {status.error}")
        if step is not None and done >= step and status.state == State.RUNNING:
            return status
        target = f"at step {step}" if step is not None else "at its end"
        expect(
            time.monotonic() < deadline, f"the job is {status.state} at step {done} after {seconds:.0f} s, not {target}"
        )
        stopping.pause(LOOK_SECONDS)


def _kill(narrator: Narrator, database: Database, supervisor: Supervisor, status: JobStatus) -> int:
    """Kill the worker that runs a job, which must be one of ours. Returns its pid."""
    select = sa.select(workers.c.pid).where(workers.c.name == status.worker)
    pid = database.read(lambda connection: connection.execute(select).scalar())
    expect(pid in {child.pid for child in supervisor.children.values()}, f"pid {pid} is not a process of this demo")
    assert pid is not None
    assert status.progress is not None
    os.kill(pid, signal.SIGKILL)
    narrator.line(f"kill -9 {pid}: worker {status.worker}, at step {status.progress.done} of {status.progress.total}")
    return int(pid)


def _check(database: Database, job: FillReservoir, status: JobStatus, killed: list[int]) -> str:
    """Two attempts: one crashed in the killed process, one filled the reservoir to the brim in another."""
    expect(status.crashes == 1, f"crashes is {status.crashes}, not 1")
    expect(status.failures == 0, "the crash was counted as a failure of the job")
    select = sa.select(history.c.outcome).where(history.c.job_id == status.id).order_by(history.c.fence)
    outcomes = database.read(lambda connection: list(connection.scalars(select)))
    expect(outcomes == [Outcome.CRASHED, Outcome.SUCCEEDED], f"its attempts ended with {', '.join(outcomes)}")
    steps: dict[int, list[int]] = {}
    for line in Path(job.journal).read_text("ascii").splitlines():
        _attempt, pid, step = map(int, line.split())
        steps.setdefault(pid, []).append(step)
    survivor = status.result["pid"]
    expect(
        set(steps) == {*killed, survivor} and survivor not in killed, f"the journal was written by pids {sorted(steps)}"
    )
    expect(len(steps[killed[0]]) < job.steps, "the killed process had already done all steps")
    expect(steps[survivor] == list(range(1, job.steps + 1)), "the second attempt skipped steps")
    return f"{job.steps} steps, 1 crash, done by another process"
