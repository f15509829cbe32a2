"""Jobs that were running when their worker crashed. Children import this module again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from penstock.config.settings import Settings
from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles, provides

ONE_ATTEMPT = RetryPolicy(max_attempts=1)
EFFECTS = sa.Table("suspects_effects", sa.MetaData(), sa.Column("job_id", sa.String(128), nullable=False))
SLEEP = 3600


class Suspect(Job):
    """Does what its name says, in the process that runs it.

    Attributes:
        folder: takes the files that the handler writes.
        jobs: how many jobs must have started before the worker may crash; 0: none, and this run is not the first.
    """

    what: str
    folder: str = ""
    jobs: int = 0


class Coroutine(Suspect, kind="suspect.async", queue="ex", retry=ONE_ATTEMPT): ...


class Function(Suspect, kind="suspect.thread", queue="ex", retry=ONE_ATTEMPT): ...


class Hurried(Suspect, kind="suspect.hurried", queue="ex", timeout=1, retry=ONE_ATTEMPT): ...


class HurriedFunction(Suspect, kind="suspect.hurriedthread", queue="ex", timeout=1, retry=ONE_ATTEMPT): ...


class Fragile(Suspect, kind="suspect.fragile", queue="ex", max_crashes=2): ...


class Isolated(Suspect, kind="suspect.isolated", queue="ex"): ...


class Untracked(Suspect, kind="suspect.untracked", queue="ex", track=False): ...


class Next(Job, kind="suspect.next", queue="ex"): ...


class Desk:
    """A resource, with the process that opened it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


@provides
def open_desk(settings: Settings) -> Iterator[Desk]:
    yield Desk(os.getpid())


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(SLEEP)


KILLERS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(9),
    "kill": kill,
    "segfault": lambda: ctypes.string_at(0),
}


def is_first_run(job: Suspect, ctx: Context) -> bool:
    """Whether this run is to end with its worker. Notes that it has started."""
    mark = Path(job.folder, f"{ctx.job_id}.started")
    if not job.jobs or mark.exists():
        return False
    mark.touch()
    return True


def have_started(job: Suspect) -> bool:
    return len(list(Path(job.folder).glob("*.started"))) >= job.jobs


def may_go_on(job: Suspect) -> bool:
    return Path(job.folder, "go").exists()


def write(job: Suspect, name: str) -> None:
    Path(job.folder, name).write_text(str(os.getpid()))


def misbehave(what: str) -> None:
    """Raise what no handler should."""
    match what:
        case "sys.exit":
            sys.exit(3)
        case "StopIteration":
            next(iter([]))
        case "CancelledError":
            raise asyncio.CancelledError


@handles(Coroutine)
async def run_coroutine(job: Coroutine, ctx: Context, desk: Desk) -> Any:
    if is_first_run(job, ctx):
        while job.what not in KILLERS or not have_started(job):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    if job.what in KILLERS:
        KILLERS[job.what]()
    ctx.progress(1, 2, "half way")
    match job.what:
        case "large":
            return "x" * 200_000
        case "sys.exit" | "StopIteration" | "CancelledError":
            misbehave(job.what)
        case "exit in a callback":
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(0.05)
        case "stop the loop":
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.05)
        case "session":
            await ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
        case "session and die after":
            await ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
            sa.event.listen(ctx.session.sync_session, "after_commit", lambda session: os._exit(9))
        case "session and fail":
            await ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
            raise ValueError("boom")
        case "once":
            return await ctx.once("charge").run(lambda effect_id: effect_id)
        case "sleep":
            write(job, "pid")
            try:
                await asyncio.sleep(SLEEP)
            finally:
                write(job, "cancelled")
        case "wait":
            write(job, "pid")
            while not may_go_on(job):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    ctx.enqueue(Next())
    return [os.getpid(), desk.pid]


@handles(Function)
def run_function(job: Function, ctx: Context, desk: Desk) -> Any:
    if is_first_run(job, ctx):
        while job.what not in KILLERS or not have_started(job):
            time.sleep(0.05)
    if job.what in KILLERS:
        KILLERS[job.what]()
    ctx.progress(1, 2, "half way")
    match job.what:
        case "large":
            return "x" * 200_000
        case "sys.exit" | "StopIteration" | "CancelledError":
            misbehave(job.what)
        case "session":
            ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
        case "session and die after":
            ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
            sa.event.listen(ctx.session, "after_commit", lambda session: os._exit(9))
        case "session and fail":
            ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
            raise ValueError("boom")
        case "once":
            return ctx.once("charge").run(lambda effect_id: effect_id)
        case "sleep":
            write(job, "pid")
            while not ctx.cancelled:
                time.sleep(0.01)
            write(job, "cancelled")
            ctx.check_cancelled()
    ctx.enqueue(Next())
    return [os.getpid(), desk.pid]


@handles(Hurried)
async def hurry(job: Hurried) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError if job.what == "deaf" else ZeroDivisionError):
            await asyncio.sleep(SLEEP)


@handles(HurriedFunction)
def hurry_in_thread(job: HurriedFunction, ctx: Context) -> None:
    while job.what == "deaf" or not ctx.cancelled:
        time.sleep(0.01)


@handles(Fragile)
async def break_down(job: Fragile) -> None:
    KILLERS[job.what]()


@handles(Isolated, isolate=True)
def run_isolated(job: Isolated) -> None:
    KILLERS[job.what]()


@handles(Untracked)
async def run_untracked(job: Untracked, ctx: Context) -> None:
    if is_first_run(job, ctx):
        while job.what not in KILLERS or not have_started(job):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    if job.what in KILLERS:
        KILLERS[job.what]()
    if job.folder:
        write(job, f"{ctx.job_id}.done")


@handles(Next)
async def follow(job: Next) -> None: ...
