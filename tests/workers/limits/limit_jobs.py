"""Jobs of worker processes that note in a file when they begin and end."""

from __future__ import annotations

import asyncio
import os
import time

from penstock.schemas import Concurrency, Job
from penstock.workers import Context, handles


class Noted(Job, kind="limits.noted", queue="noted", limits=[Concurrency(3)]):
    file: str
    seconds: float


def note(file: str, what: str, job_id: str) -> None:
    line = f"{what} {os.getpid()} {job_id} {time.monotonic():.6f}\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@handles(Noted)
async def noted(job: Noted, ctx: Context) -> None:
    note(job.file, "begins", ctx.job_id)
    await asyncio.sleep(job.seconds)
    note(job.file, "ends", ctx.job_id)
