"""`soft_timeout` of handlers that do not run in the pool: in threads, on the loop, and isolated."""

from __future__ import annotations

import asyncio
import time

import pytest
from workers.executor.bench import Bench

from penstock.schemas import Job
from penstock.workers import Context, SoftTimeLimitExceeded, handles


class InThread(Job, kind="soft.thread", queue="ex", soft_timeout=0.2, timeout=60):
    is_caught: bool


class OnLoop(Job, kind="soft.loop", queue="ex", soft_timeout=0.2, timeout=60):
    is_caught: bool


class Isolated(Job, kind="soft.isolated", queue="ex", soft_timeout=2, timeout=60):
    is_caught: bool


@handles(InThread)
def in_thread(job: InThread, ctx: Context) -> str | None:
    try:
        while True:
            ctx.check_cancelled()
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        if job.is_caught:
            return "in good order"
        raise


@handles(OnLoop)
async def on_loop(job: OnLoop) -> str | None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        if not job.is_caught:
            raise
    return "in good order"


@handles(Isolated, isolate=True)
def isolated(job: Isolated) -> str | None:
    try:
        time.sleep(3600)
    except SoftTimeLimitExceeded:
        if not job.is_caught:
            raise
    return "in good order"


@pytest.mark.parametrize("kind", [InThread, OnLoop, Isolated], ids=["thread", "loop", "isolated"])
def test_a_handler_may_end_in_good_order_at_its_soft_limit(bench: Bench, kind: type[Job]) -> None:
    bench.worker()
    assert bench.run(kind(is_caught=True)).result == "in good order"
    status = bench.run(kind(is_caught=False))
    assert status.state == "retrying"
    assert status.error.startswith("SoftTimeLimitExceeded: ")
