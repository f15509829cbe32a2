"""Jobs with handlers for the tests of the testing kit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from penstock.config.settings import Settings
from penstock.producers import AsyncProducer, Producer
from penstock.schemas import Job, RetryPolicy, Sensitive
from penstock.workers import Context, Discard, Retry, Snooze, handles, provides

NOWHERE = "redis://127.0.0.1:1/0"


producer = Producer(NOWHERE, timeout=0.2, queues=["listed"])
"""As an app has it: made when its module is imported, long before any test."""


async_producer = AsyncProducer(NOWHERE, timeout=0.2)


class Mailer:
    def __init__(self) -> None:
        self.sent: list[str] = []


@provides
def open_mailer(settings: Settings) -> Iterator[Mailer]:
    raise AssertionError("a test replaces it")
    yield Mailer()


class Invoice(Job, kind="kit.invoice", queue="kit", retry=RetryPolicy(max_attempts=3, first_delay=timedelta(0))):
    n: int
    iban: Sensitive[str] = "DE02"


class Receipt(Job, kind="kit.receipt", queue="kit"):
    n: int
    key: str = ""


class Mail(Job, kind="kit.mail", queue="kit"):
    to: str


class Light(Job, kind="kit.light", queue="kit", track=False, retry=RetryPolicy(max_attempts=2)):
    n: int


class Alone(Job, kind="kit.alone", queue="kit", unique_by=("n",), unique="reject", unique_for=3600):
    n: int


class Latest(Job, kind="kit.latest", queue="kit", unique_by=("n",), unique="debounce", debounce=60):
    n: int
    text: str = ""


class Newest(Job, kind="kit.newest", queue="kit", unique_by=("n",), unique="replace"):
    n: int
    text: str = ""


class Same(Job, kind="kit.same", queue="kit", unique_by=("n",), unique="existing"):
    n: int


class Endless(Job, kind="kit.endless", queue="kit"): ...


class Child(Job, kind="kit.child", queue="kit"): ...


class Says(Job, kind="kit.says", queue="kit", retry=RetryPolicy(max_attempts=2)):
    what: str


class Nightly(Job, kind="kit.nightly", queue="kit"): ...


class Write(Job, kind="kit.write", queue="kit", delivery="once"):
    n: int


things = sa.Table("kit_things", sa.MetaData(), sa.Column("n", sa.Integer))


class Broken(Exception): ...


@handles(Write)
def run_write(job: Write, ctx: Context) -> None:
    ctx.session.execute(sa.insert(things).values(n=job.n))
    if job.n < 0:
        raise Broken


@handles(Invoice)
async def run_invoice(job: Invoice, ctx: Context) -> str:
    if job.n < 0:
        raise Broken(f"invoice {job.n}")
    ctx.enqueue(Receipt(n=job.n))
    return f"invoice {job.n}"


@handles(Receipt)
def run_receipt(job: Receipt) -> int:
    if job.n > 100:
        producer.enqueue(Receipt(n=job.n - 100))
    return job.n


@handles(Mail)
async def run_mail(job: Mail, mailer: Mailer) -> None:
    mailer.sent.append(job.to)


@handles(Light)
async def run_light(job: Light) -> None:
    if job.n < 0:
        raise Broken


@handles(Alone)
@handles(Latest)
@handles(Newest)
@handles(Same)
@handles(Nightly)
async def run_nothing(job: Job) -> None: ...


@handles(Endless)
async def run_endless(job: Endless) -> None:
    await async_producer.enqueue(Endless())


@handles(Child, isolate=True)
def run_child(job: Child) -> int:
    return os.getpid()


@handles(Says)
async def run_says(job: Says) -> Any:
    return {"snooze": Snooze(60), "discard": Discard("no"), "retry": Retry(60, reason="busy")}[job.what]


def at(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr
