"""The demo's own kind: a reservoir that fills for some seconds, to be interrupted by a SIGKILL."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pydantic import BaseModel, Field

from penstock.schemas.jobs.job import Job
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles


class FillReservoir(Job, kind="demo.fill", queue="demo", timeout=120):
    """Fill a reservoir step by step and write each step to a journal."""

    journal: str
    """Path of the file that each step adds a line to: attempt, pid, step."""
    steps: int = Field(default=36, ge=1)
    step_seconds: float = Field(default=0.15, gt=0)


class Filled(BaseModel):
    steps: int
    pid: int
    """Process id of the worker that finished the job."""


@handles(FillReservoir)
async def fill_reservoir(job: FillReservoir, ctx: Context) -> Filled:
    for step in range(1, job.steps + 1):
        await asyncio.sleep(job.step_seconds)
        with Path(job.journal).open("a", encoding="ascii") as file:  # noqa: ASYNC230  # one line
            file.write(f"{ctx.attempt} {os.getpid()} {step}\n")
        ctx.progress(step, job.steps, f"pid {os.getpid()}")
    return Filled(steps=job.steps, pid=os.getpid())
