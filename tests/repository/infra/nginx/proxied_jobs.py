"""A kind whose handler takes each step only when a file says so: what a client sees at a step was not held back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from penstock.schemas import Job
from penstock.workers import Context, handles


class Climb(Job, kind="proxied.climb", queue="proxied"):
    folder: str
    steps: int = 3
    text: str = ""


@handles(Climb)
async def climb(job: Climb, ctx: Context) -> str:
    for step in range(1, job.steps + 1):
        ctx.progress(step, job.steps)
        while not (Path(job.folder) / f"seen-{step}").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return "at the top"
