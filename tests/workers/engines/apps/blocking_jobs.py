"""A job whose handler blocks the event loop, which is a mistake."""

from __future__ import annotations

import time
from pathlib import Path

from penstock.schemas import Job
from penstock.workers import handles


class BlockUntil(Job, kind="engines.block_until", queue="engines"):
    """Blocks the loop until the file exists."""

    file: str


@handles(BlockUntil)
async def block(job: BlockUntil) -> None:
    while not Path(job.file).exists():  # noqa: ASYNC240
        time.sleep(0.05)  # noqa: ASYNC251
