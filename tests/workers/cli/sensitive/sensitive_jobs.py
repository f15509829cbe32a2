"""Handlers that do with a sensitive value all that shows it, run by a worker of the tests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from penstock.schemas import Concurrency, Job, RetryPolicy, Sensitive
from penstock.workers import Context, Discard, Permanent, Retry, Snooze, handles

MARKER = "marker-5e1f-value"
WAYS = ("return", "raise", "note", "chained", "group", "validation", "permanent", "discard", "retry", "snooze", "exit")


class Account(BaseModel):
    number: int


class Marked(
    Job,
    kind="marked.pay",
    queue="marked",
    unique_by=("iban",),
    unique="existing",
    limits=[Concurrency(50, by="iban")],
    retry=RetryPolicy(max_attempts=2, first_delay=timedelta(0)),
):
    iban: Sensitive[str] | None
    how: str
    amount: int = 0


class Patient(
    Job, kind="marked.patient", queue="marked", retry=RetryPolicy(first_delay=timedelta(hours=1), jitter=False)
):
    values: dict[str, list[Sensitive[str]]]


class Isolated(Job, kind="marked.isolated", queue="marked", retry=RetryPolicy(max_attempts=1)):
    values: dict[str, list[Sensitive[str]]]


def fail(value: str | None, how: str) -> Any:
    match how:
        case "return":
            return {"paid": [value, f"to {value}"], "amount": 7}
        case "raise":
            raise ValueError(f"no bank has {value}")
        case "note":
            error = ValueError("no bank")
            error.add_note(f"it was {value}")
            raise error
        case "chained":
            try:
                raise KeyError(value)
            except KeyError as error:
                raise RuntimeError("it cannot be paid") from error
        case "group":
            raise ExceptionGroup(f"all of {value}", [ValueError(value), OSError(f"{value}\nand more")])
        case "validation":
            return Account.model_validate({"number": f"{value}{'x' * 60}{value}"})
        case "permanent":
            raise Permanent(value)
        case "discard":
            return Discard(f"{value} is closed")
        case "retry":
            return Retry(0, reason=f"{value} is busy")
        case "snooze":
            return Snooze(3600, reason=f"{value} sleeps")
        case _:
            raise SystemExit(value)


@handles(Marked)
async def pay(job: Marked, ctx: Context) -> Any:
    ctx.progress(1, 2, f"paying from {job.iban}")
    return fail(job.iban, job.how)


@handles(Patient)
def wait(job: Patient) -> None:
    fail(job.values["ibans"][0], "raise")


@handles(Isolated, isolate=True)
def isolated(job: Isolated, ctx: Context) -> None:
    ctx.progress(1, 2, f"paying from {job.values['ibans'][0]}")
    fail(job.values["ibans"][0], "chained")
