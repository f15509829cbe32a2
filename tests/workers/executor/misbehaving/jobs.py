"""Handlers that do what no handler should, and ones that must not suffer for it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

from support.polling import WAIT_SECONDS

from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles

NO_RETRY = RetryPolicy(max_attempts=1)
begin = threading.Event()
"""Lets `BlockLater` block."""
release = threading.Event()
"""Lets the handlers go that ignore that they were stopped."""


class Misbehave(Job, kind="mis.async", queue="ex", retry=NO_RETRY):
    how: str


class MisbehaveInThread(Job, kind="mis.thread", queue="ex", retry=NO_RETRY):
    how: str


class Fickle(Job, kind="mis.fickle", queue="ex", retry=RetryPolicy(max_attempts=3, first_delay=0, jitter=False)):
    """Raises CancelledError in each attempt."""

    how: str


class Stubborn(Job, kind="mis.stubborn", queue="ex", retry=NO_RETRY, timeout=0.5):
    """Swallows each cancellation."""


class StubbornForever(Job, kind="mis.forever", queue="ex", retry=NO_RETRY):
    """Swallows each cancellation, and has no timeout."""


class Block(Job, kind="mis.block", queue="ex", retry=NO_RETRY):
    """Blocks the loop."""


class BlockLater(Job, kind="mis.block_later", queue="ex", retry=NO_RETRY):
    """Blocks the loop, once it is to."""


class Ping(Job, kind="mis.ping", queue="ex", retry=NO_RETRY):
    """Behaves well."""


ended: list[str] = []
left: set[asyncio.Task[None]] = set()


async def leave() -> None:
    sys.exit(3)


async def cancelled() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


@handles(Misbehave)
async def misbehave(job: Misbehave, ctx: Context) -> Any:
    loop = asyncio.get_running_loop()
    match job.how:
        case "exit":
            sys.exit(3)
        case "exit in a task":
            await asyncio.create_task(leave())
        case "exit in a gather":
            await asyncio.gather(leave(), asyncio.sleep(0))
        case "exit in a task group":
            async with asyncio.TaskGroup() as group:
                group.create_task(leave())
        case "exit in a callback":
            loop.call_soon(sys.exit, 3)
            await asyncio.sleep(0.05)
        case "exit in a thread":
            await asyncio.to_thread(sys.exit, 3)
        case "interrupt":
            raise KeyboardInterrupt
        case "stop the loop":
            loop.stop()
            await asyncio.sleep(0.05)
        case "StopIteration":
            next(iter([]))
        case "leave tasks":
            left.update(
                asyncio.create_task(work) for work in (ignore_cancellation(), end_orderly(), leave_when_cancelled())
            )
            await asyncio.sleep(0)
        case "cancel itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
    return "done"


@handles(MisbehaveInThread)
def misbehave_in_thread(job: MisbehaveInThread) -> Any:
    match job.how:
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "StopIteration":
            next(iter([]))
        case "CancelledError":
            raise asyncio.CancelledError
    return "done"


@handles(Fickle)
async def fickle(job: Fickle) -> None:
    if job.how == "raised":
        raise asyncio.CancelledError
    await cancelled()


async def end_orderly() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        ended.append("orderly")


async def leave_when_cancelled() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        sys.exit(3)


async def ignore_cancellation() -> None:
    while not release.is_set():
        try:
            await asyncio.sleep(0.05)
        except BaseException:
            continue


@handles(Stubborn)
async def stubborn(job: Stubborn) -> None:
    await ignore_cancellation()


@handles(StubbornForever)
async def stubborn_forever(job: StubbornForever) -> None:
    await ignore_cancellation()


@handles(BlockLater)
async def block_later(job: BlockLater) -> str:
    while not begin.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return await block(Block())


@handles(Block)
async def block(job: Block) -> str:
    deadline = time.monotonic() + WAIT_SECONDS
    while not release.is_set() and time.monotonic() < deadline:
        time.sleep(0.05)  # noqa: ASYNC251
    return "blocked"


@handles(Ping)
async def ping(job: Ping) -> str:
    return "pong"
