"""The jobs and handlers that the conformance suite runs on every engine. Imported by the tests and by the workers."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from penstock.schemas import Job, RetryPolicy, Sensitive
from penstock.workers import Context, Retry, Snooze, handles

QUICK = RetryPolicy(max_attempts=3, first_delay=0.05, max_delay=0.2)


class Add(Job, kind="acme.add", queue="acme"):
    a: int
    b: int
    note: Sensitive[str] = ""


class Sum(BaseModel):
    sum: int
    engine_thread: str


class Fail(Job, kind="acme.fail", queue="acme", retry=QUICK):
    mark: str


class Flaky(Job, kind="acme.flaky", queue="acme", retry=QUICK):
    """Fails until its file has as many lines as `failures`."""

    file: str
    failures: int


class Mark(Job, kind="acme.mark", queue="acme"):
    """Appends a line to a file, after `seconds`: a record of runs and their order."""

    file: str
    text: str
    seconds: float = 0


class MarkInThread(Job, kind="acme.markthread", queue="acme"):
    file: str
    text: str
    seconds: float = 0


class MarkOnce(Job, kind="acme.markonce", queue="acme", delivery="once"):
    file: str
    text: str
    seconds: float = 0


class Isolated(Job, kind="acme.isolated", queue="acme", timeout=30):
    text: str


class SnoozeOnce(Job, kind="acme.snooze", queue="acme"):
    file: str


class Blob(Job, kind="acme.blob", queue="acme"):
    text: str


class Note(Job, kind="acme.note", queue="acme"):
    """Appends its text to a file, if one is given, and returns it."""

    text: Any
    file: str = ""


class Untracked(Job, kind="acme.untracked", queue="acme", track=False):
    file: str
    text: str


class Removed(Job, kind="acme.removed", queue="acme"):
    """A kind that the test knows and no handler serves."""


def append(file: str, text: str) -> None:
    # A single write of a short line with O_APPEND is atomic.
    with open(file, "a") as lines:
        lines.write(text + "\n")


@handles(Add)
async def add(job: Add, ctx: Context) -> Sum:
    ctx.progress(1, 2, "adding")
    return Sum(sum=job.a + job.b, engine_thread=str(os.getpid()))


@handles(Fail)
async def fail(job: Fail) -> None:
    raise ValueError(f"failed on purpose: {job.mark}")


@handles(Flaky)
def flaky(job: Flaky, ctx: Context) -> int:
    append(job.file, str(ctx.attempt))
    if len(Path(job.file).read_text().splitlines()) <= job.failures:
        return Retry(reason="flaky")  # type: ignore[return-value]
    return ctx.attempt


@handles(Mark)
async def mark(job: Mark) -> None:
    await asyncio.sleep(job.seconds)
    append(job.file, job.text)


@handles(MarkInThread)
def mark_in_thread(job: MarkInThread) -> None:
    time.sleep(job.seconds)
    append(job.file, job.text)


@handles(MarkOnce)
async def mark_once(job: MarkOnce) -> None:
    append(job.file, job.text)
    await asyncio.sleep(job.seconds)


@handles(Isolated, isolate=True)
def isolated(job: Isolated, ctx: Context) -> dict[str, Any]:
    ctx.progress(1, 1)
    return {"text": job.text, "pid": os.getpid()}


@handles(SnoozeOnce)
def snooze_once(job: SnoozeOnce, ctx: Context) -> Any:
    if not Path(job.file).exists():
        append(job.file, "snoozed")
        return Snooze(0.1)
    return {"attempt": ctx.attempt}


@handles(Blob)
async def blob(job: Blob) -> int:
    return len(job.text)


@handles(Note)
async def note(job: Note) -> Any:
    if job.file:
        append(job.file, str(job.text))
    return job.text


@handles(Untracked)
async def untracked(job: Untracked) -> None:
    append(job.file, job.text)
