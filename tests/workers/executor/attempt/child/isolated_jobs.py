"""Jobs of isolated handlers for these tests. Children import this module again."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from workers.executor.attempt.child.isolated_cases import CASES

from penstock.config.settings import Settings
from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles, provides


class Echo(Job, kind="iso.echo", queue="ex", timeout=60):
    """Returns its text, `times` times."""

    text: str
    times: int = 1


class Run(Job, kind="iso.run", queue="ex", timeout=60, retry=RetryPolicy(max_attempts=2, give_up_on=LookupError)):
    """Calls a function of `CASES`."""

    case: str
    file: str = ""


class Hurried(Job, kind="iso.hurried", queue="ex", timeout=2):
    case: str
    file: str = ""


class Patient(Job, kind="iso.patient", queue="ex"):
    """Like `Run`, without a timeout."""

    case: str
    file: str = ""


class Open(Job, kind="iso.open", queue="ex", timeout=60):
    file: str
    what: str = ""


class Ledger:
    """A synchronous resource: each line that it takes is in its file."""

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread


class Session:
    """An asynchronous resource."""


@provides
def open_ledger(settings: Settings) -> Iterator[Ledger]:
    asyncio.run(asyncio.sleep(0))
    yield Ledger(threading.current_thread())
    logging.getLogger("iso.ledger").info("ledger closed")


@provides
async def open_session(settings: Settings) -> AsyncIterator[Session]:
    await asyncio.sleep(0)
    yield Session()
    await asyncio.to_thread(logging.getLogger("iso.session").info, "session closed")


@handles(Echo, isolate=True)
def echo(job: Echo) -> str:
    return job.text * job.times


@handles(Run, isolate=True)
def run(job: Run, ctx: Context) -> Any:
    return CASES[job.case](ctx, Path(job.file))


@handles(Hurried, isolate=True)
def hurried(job: Hurried, ctx: Context) -> Any:
    return CASES[job.case](ctx, Path(job.file))


@handles(Patient, isolate=True)
def patient(job: Patient, ctx: Context) -> Any:
    return CASES[job.case](ctx, Path(job.file))


@handles(Open, isolate=True)
def open_resources(job: Open, ctx: Context, ledger: Ledger, session: Session, again: Ledger) -> Any:
    if job.what == "exit":
        raise SystemExit(3)
    if job.what == "fail":
        raise ValueError("with open resources")
    return [type(session).__name__, ledger is again, ledger.thread is threading.current_thread()]
