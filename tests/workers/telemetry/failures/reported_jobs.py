"""Handlers that fail in every way, in an application with Sentry, whose transport writes to a file, and with a hook."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import sentry_sdk
from pydantic import BaseModel
from sentry_sdk.transport import Transport

from penstock.schemas import Job, RetryPolicy, Sensitive
from penstock.workers import Context, Failure, Retry, handles, on_failure
from penstock.workers.workflows import Workflow, step

MARKER = "marker-77aa-value"
EVENTS, HOOKED = Path("sentry.jsonl"), Path("hooked.jsonl")
QUEUE = "reported"
_writing = threading.Lock()


def append(file: Path, value: object) -> None:
    with _writing, file.open("ab", buffering=0) as stream:  # one write, for other processes do so too
        stream.write(json.dumps(value, default=str).encode() + b"\n")


class FileTransport(Transport):
    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            append(EVENTS, {"item": item.type, **item.payload.json})


if os.environ.get("REPORTED_SENTRY") == "app":
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=FileTransport, environment="tests")
    sentry_sdk.set_tag("application", "reported")


class Fail(Job, kind="reported.fail", queue=QUEUE, retry=RetryPolicy(max_attempts=2, first_delay=timedelta(0))):
    how: str = "raise"


class FailInThread(Job, kind="reported.thread", queue=QUEUE, retry=RetryPolicy(max_attempts=1)):
    pass


class FailIsolated(Job, kind="reported.isolated", queue=QUEUE, retry=RetryPolicy(max_attempts=1)):
    card: Sensitive[str] = "none"


class Secret(Job, kind="reported.secret", queue=QUEUE, retry=RetryPolicy(max_attempts=1)):
    card: Sensitive[str]
    how: str


class Crash(Job, kind="reported.crash", queue=QUEUE, max_crashes=1):
    pass


class OnlyOnce(Job, kind="reported.once", queue=QUEUE, delivery="at_most_once"):
    pass


class Nightly(Job, kind="reported.nightly", queue=QUEUE, timeout=90, retry=RetryPolicy(max_attempts=1)):
    fails: bool = False


class Trip(Workflow, kind="reported.trip", queue=QUEUE):
    @step
    def night(self) -> Nightly:
        return Nightly(fails=True)


class Account(BaseModel):
    number: int


@handles(Fail)
async def fail(job: Fail, ctx: Context) -> Any:
    ctx.log.info("before %s", job.how)
    logging.getLogger("shop").info("the shop is open")
    if job.how == "retry":
        return Retry(0, reason="it is busy")
    secret_of_mine = "a local value"
    raise ValueError(f"boom of {len(secret_of_mine)}")


@handles(FailInThread)
def fail_in_thread(job: FailInThread, ctx: Context) -> None:
    logging.getLogger("shop").info("in a thread")
    raise ValueError("boom in a thread")


@handles(FailIsolated, isolate=True)
def fail_isolated(job: FailIsolated) -> None:
    logging.getLogger("shop").info("in a child with %s", job.card)
    raise ValueError(f"boom in a child with {job.card}")


@handles(Secret)
async def keep_secret(job: Secret, ctx: Context) -> None:
    card = job.card
    ctx.log.info("it is %s", card)
    logging.getLogger("shop").error("the shop has %s", card)
    sentry_sdk.add_breadcrumb(message=f"paid with {card}", data={"card": card})
    sentry_sdk.set_tag("card", card)
    match job.how:
        case "validation":
            Account.model_validate({"number": f"{card}{'x' * 60}{card}"})
        case "chained":
            try:
                raise KeyError(card)
            except KeyError as error:
                logging.getLogger("shop").exception("no card")
                raise RuntimeError("it cannot be paid") from error
        case "group":
            raise ExceptionGroup(f"all of {card}", [ValueError(card), OSError(f"{card}\nand more")])
        case "note":
            error = ValueError("no bank")
            error.add_note(f"it was {card}")
            raise error
    raise ValueError(f"no bank has {card}")


@handles(Crash)
async def crash(job: Crash) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@handles(OnlyOnce)
async def only_once(job: OnlyOnce) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@handles(Nightly)
async def nightly(job: Nightly) -> None:
    if job.fails:
        raise ValueError("no night")


def note(failure: Failure) -> None:
    fields = ("job_id", "kind", "outcome", "attempt", "max_attempts", "is_dead", "error", "fingerprint", "engine")
    append(HOOKED, {name: getattr(failure, name) for name in fields} | {"exception": type(failure.exception).__name__})


def note_nights(failure: Failure) -> None:
    append(Path("nights.jsonl"), failure.job_id)


def broken(failure: Failure) -> None:
    raise RuntimeError("this hook is broken")


if "REPORTED_SENTRY" in os.environ:  # in the processes of a test, and not in the one that runs tests
    on_failure(note)
    on_failure(Nightly)(note_nights)
    on_failure(broken)
