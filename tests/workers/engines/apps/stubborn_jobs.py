"""Jobs that do not stop when they are asked to."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from penstock.schemas import Job
from penstock.workers import handles

SECONDS = 600.0
"""Longer than any test waits."""


class Hold(Job, kind="engines.hold", queue="engines"):
    """A coroutine that swallows its cancellation, blocks the loop, or leaves a thread of its own pool behind."""

    how: str
    file: str


class HoldThread(Job, kind="engines.holdthread", queue="engines"):
    """A plain function that never looks whether it is to stop."""

    file: str


@handles(Hold)
async def hold(job: Hold) -> None:
    Path(job.file).touch()  # noqa: ASYNC240
    if job.how == "block":
        time.sleep(SECONDS)  # noqa: ASYNC251
    if job.how == "pool":
        await asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), time.sleep, SECONDS)
    while True:
        try:
            await asyncio.sleep(1)
        except BaseException:
            continue


@handles(HoldThread)
def hold_thread(job: HoldThread) -> None:
    Path(job.file).touch()
    time.sleep(SECONDS)
