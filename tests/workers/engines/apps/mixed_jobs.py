"""Jobs that use all that needs a server: progress, results, limits, jobs of their own, workflows, no record."""

from __future__ import annotations

import asyncio

from penstock.schemas import Concurrency, Job
from penstock.workers import Context, handles
from penstock.workers.workflows import Workflow, step


class Report(Job, kind="mixed.report", queue="mixed"):
    """Reports progress, and returns its number."""

    number: int = 0


class Plain(Job, kind="mixed.plain", queue="mixed"):
    """Runs in a thread."""

    number: int = 0


class Limited(Job, kind="mixed.limited", queue="mixed", limits=(Concurrency(3),)):
    number: int = 0


class Untracked(Job, kind="mixed.untracked", queue="mixed", track=False):
    number: int = 0


class Spread(Job, kind="mixed.spread", queue="mixed"):
    """Enqueues two more."""

    number: int = 0


class Flow(Workflow, kind="mixed.flow", queue="mixed"):
    number: int = 0

    @step
    def report(self) -> Report:
        return Report(number=self.number)


KINDS = (Report, Plain, Limited, Untracked, Spread, Flow)


@handles(Report)
async def report(job: Report, ctx: Context) -> int:
    for done in range(3):
        ctx.progress(done, 3, "reporting")
        await asyncio.sleep(0.02)
    return job.number


@handles(Plain)
def plain(job: Plain, ctx: Context) -> int:
    ctx.progress(1, 1)
    return job.number


@handles(Limited)
async def limited(job: Limited) -> None:
    await asyncio.sleep(0.02)


@handles(Untracked)
async def untracked(job: Untracked) -> None:
    await asyncio.sleep(0.01)


@handles(Spread)
async def spread(job: Spread, ctx: Context) -> None:
    ctx.enqueue(Report(number=job.number))
    ctx.enqueue(Untracked(number=job.number))
