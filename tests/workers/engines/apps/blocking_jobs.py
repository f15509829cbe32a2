"""Jobs whose handler blocks the event loop, which is a mistake, and jobs that must not suffer for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from penstock.schemas import Job
from penstock.workers import Context, handles


class BlockUntil(Job, kind="engines.block_until", queue="engines"):
    """Blocks the loop until the file exists."""

    file: str


class HoldUntil(Job, kind="engines.hold_until", queue="engines"):
    """Keeps its slot, not the loop, until the file exists."""

    file: str


class WriteLine(Job, kind="engines.write_line", queue="engines"):
    """Writes its id and process into the file."""

    file: str


class WriteUntracked(WriteLine, kind="engines.write_untracked", queue="engines", track=False):
    """The same, and has a record only if it fails."""


@handles(BlockUntil)
async def block(job: BlockUntil) -> None:
    while not Path(job.file).exists():  # noqa: ASYNC240
        time.sleep(0.05)  # noqa: ASYNC251


@handles(HoldUntil)
def hold(job: HoldUntil) -> None:
    while not Path(job.file).exists():
        time.sleep(0.05)


@handles(WriteLine)
def write_line(job: WriteLine, ctx: Context) -> None:
    with Path(job.file).open("a") as file:
        file.write(f"{ctx.job_id} {os.getpid()}\n")


@handles(WriteUntracked)
def write_untracked(job: WriteUntracked, ctx: Context) -> None:
    write_line(job, ctx)
