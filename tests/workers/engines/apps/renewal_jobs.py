"""Jobs for workers that renew themselves. With the file of `BROKEN_WHILE` in place, their module cannot be imported."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from penstock.schemas import Job
from penstock.workers import Context, handles

BROKEN_WHILE = "TEST_BROKEN_WHILE"

if (file := os.environ.get(BROKEN_WHILE)) and Path(file).exists():
    raise ImportError("a broken deploy")

_leaked: list[bytes] = []


class Leak(Job, kind="renewal.leak", queue="engines"):
    mebibytes: int


class HoldUntil(Job, kind="renewal.hold_until", queue="engines"):
    """Runs until the file exists. Next to it, a file with the job's id as suffix says that it runs."""

    file: str


@handles(Leak)
def leak(job: Leak) -> None:
    _leaked.append(b"x" * job.mebibytes * 1024 * 1024)


@handles(HoldUntil)
async def hold_until(job: HoldUntil, ctx: Context) -> int:
    Path(f"{job.file}.{ctx.job_id}").touch()  # noqa: ASYNC240
    while not Path(job.file).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.02)
    return os.getpid()
