"""Jobs that the workers of these tests run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from penstock.schemas import Job, RetryPolicy, Sensitive
from penstock.workers import Context, Discard, Retry, Snooze, handles

QUEUE = "engines"
OTHER_QUEUE = "engines-2"
"""No worker consumes it until asked to."""


class Add(Job, kind="engines.add", queue=QUEUE):
    """Adds."""

    a: int
    b: int = 1
    card: Sensitive[str] = "4111-1111"


class Sleep(Job, kind="engines.sleep", queue=QUEUE):
    seconds: float
    note: str = ""


class Break(Job, kind="engines.break", queue=QUEUE, retry=RetryPolicy(max_attempts=1)):
    note: str = "it broke"


class End(Job, kind="engines.end", queue=QUEUE):
    how: str


class Aside(Job, kind="engines.aside", queue=OTHER_QUEUE):
    note: str = ""


class Note(Job, kind="engines.note", queue=QUEUE):
    text: str


class Isolated(Job, kind="engines.isolated", queue=QUEUE):
    """Starts a program, writes its own process id and the program's into a file, and waits for its end."""

    file: str


@handles(Isolated, isolate=True)
def isolated(job: Isolated, ctx: Context) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    ctx.log.info("isolated job %s runs", ctx.job_id)
    Path(job.file).write_text(f"{os.getpid()} {program.pid}\n")
    program.wait()


@handles(Aside)
async def aside(job: Aside) -> str:
    return "done"


@handles(Note)
async def note(job: Note) -> str:
    return job.text


@handles(Add)
def add(job: Add) -> int:
    return job.a + job.b


@handles(Sleep)
async def sleep(job: Sleep, ctx: Context) -> str:
    await asyncio.sleep(job.seconds)
    return threading.current_thread().name


@handles(Break)
async def broken(job: Break) -> None:
    raise ValueError(job.note)


@handles(End)
async def end(job: End) -> Any:
    return {"snooze": Snooze(3600, reason="later"), "discard": Discard("no need"), "retry": Retry(3600)}[job.how]
