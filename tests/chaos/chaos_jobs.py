"""The jobs of the chaos runs. Each leaves a trace: a line in a file, a row in the ledger's database, or a charge with
an outside provider."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import sqlalchemy as sa

from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles

QUEUE = "chaos"
RETRY = RetryPolicy(max_attempts=100, first_delay=0.05, max_delay=0.5)
QUIET_SECONDS = 0.7
CHILD = 1_000_000
"""Offset from the number of a parent to the number of its child."""
EFFECTS = sa.Table(
    "chaos_effects",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
"""Rows that `once` jobs write with `ctx.session`. No unique constraint: a round looks for second rows."""


class Chaotic(Job):
    """A base without a kind.

    Attributes:
        number: identifies the call in the trace.
        seconds: how long it works.
        failures: attempts that fail before one succeeds.
        about: what unique kinds are about.
    """

    number: int
    seconds: float = 0.0
    failures: int = 0
    about: int = 0


class Least(Chaotic, kind="chaos.least", queue=QUEUE, retry=RETRY):
    pass


class LeastThread(Chaotic, kind="chaos.leastthread", queue=QUEUE, retry=RETRY):
    pass


class LeastUntracked(Chaotic, kind="chaos.leastuntracked", queue=QUEUE, retry=RETRY, track=False):
    pass


class Once(Chaotic, kind="chaos.once", queue=QUEUE, retry=RETRY, delivery="once"):
    pass


class OnceThread(Chaotic, kind="chaos.oncethread", queue=QUEUE, retry=RETRY, delivery="once"):
    pass


class Parent(Chaotic, kind="chaos.parent", queue=QUEUE, retry=RETRY, delivery="once"):
    """Enqueues a `Once`."""


class Most(Chaotic, kind="chaos.most", queue=QUEUE, retry=RETRY, delivery="at_most_once"):
    pass


class Charge(Chaotic, kind="chaos.charge", queue=QUEUE, retry=RETRY, delivery="once"):
    """Charges with `ctx.once`, and asks the provider where it is in doubt."""


class ChargeUnasked(Chaotic, kind="chaos.chargeunasked", queue=QUEUE, retry=RETRY):
    """Charges with `ctx.once`; where it is in doubt, it ends as a dead letter. At least once: the hardest case."""


class Reject(Chaotic, kind="chaos.reject", queue=QUEUE, retry=RETRY, unique_by=("about",), unique="reject"):
    pass


class Existing(Chaotic, kind="chaos.existing", queue=QUEUE, retry=RETRY, unique_by=("about",), unique="existing"):
    pass


class Replace(Chaotic, kind="chaos.replace", queue=QUEUE, retry=RETRY, unique_by=("about",), unique="replace"):
    pass


class Debounce(
    Chaotic,
    kind="chaos.debounce",
    queue=QUEUE,
    retry=RETRY,
    unique_by=("about",),
    unique="debounce",
    debounce=QUIET_SECONDS,
):
    pass


def _trace(job: Chaotic, ctx: Context) -> None:
    # A single write of a short line with O_APPEND is atomic, and outlives its process.
    with open(os.environ["CHAOS_TRACE"], "a") as lines:
        lines.write(f"{job.number} {ctx.job_id} {os.getpid()} {time.time():.3f}\n")


def _fail(job: Chaotic, ctx: Context) -> None:
    if ctx.attempt <= job.failures:
        raise ValueError("failed on purpose")


def _account(effect_id: str) -> Path:
    return Path(os.environ["CHAOS_PROVIDER"]) / effect_id


def _charge(job: Chaotic, effect_id: str) -> int:
    """The outside provider: counts its calls for each idempotency key."""
    with open(_account(effect_id), "a") as calls:
        calls.write(f"{job.number} {os.getpid()} {time.time():.3f}\n")
    return job.number


async def _work(job: Chaotic, ctx: Context) -> None:
    await asyncio.sleep(job.seconds)
    _fail(job, ctx)
    _trace(job, ctx)


@handles(Least)
async def least(job: Least, ctx: Context) -> None:
    await _work(job, ctx)


@handles(LeastThread)
def least_thread(job: LeastThread, ctx: Context) -> None:
    time.sleep(job.seconds)
    _fail(job, ctx)
    _trace(job, ctx)


@handles(LeastUntracked)
async def least_untracked(job: LeastUntracked, ctx: Context) -> None:
    await _work(job, ctx)


@handles(Once)
async def once(job: Once, ctx: Context) -> None:
    await asyncio.sleep(job.seconds)
    _fail(job, ctx)
    await ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))


@handles(OnceThread)
def once_thread(job: OnceThread, ctx: Context) -> None:
    time.sleep(job.seconds)
    _fail(job, ctx)
    ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))


@handles(Parent)
async def parent(job: Parent, ctx: Context) -> None:
    ctx.enqueue(Once(number=CHILD + job.number))
    await asyncio.sleep(job.seconds)
    _fail(job, ctx)
    await ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))


@handles(Most)
async def most(job: Most, ctx: Context) -> None:
    _trace(job, ctx)
    await asyncio.sleep(job.seconds)


@handles(Charge)
async def charge(job: Charge, ctx: Context) -> None:
    async def call(effect_id: str) -> int:
        await asyncio.sleep(job.seconds / 2)
        number = _charge(job, effect_id)
        await asyncio.sleep(job.seconds / 2)
        return number

    def ask(effect_id: str) -> int | None:
        account = _account(effect_id)  # empty: killed between opening and writing it
        return job.number if account.exists() and account.stat().st_size else None

    assert await ctx.once("charge").run(call, ask=ask) == job.number
    _fail(job, ctx)


@handles(ChargeUnasked)
def charge_unasked(job: ChargeUnasked, ctx: Context) -> None:
    time.sleep(job.seconds)
    assert ctx.once("charge").run(lambda effect_id: _charge(job, effect_id)) == job.number
    _fail(job, ctx)


@handles(Reject)
async def reject(job: Reject, ctx: Context) -> None:
    await _work(job, ctx)


@handles(Existing)
async def existing(job: Existing, ctx: Context) -> None:
    await _work(job, ctx)


@handles(Replace)
async def replace(job: Replace, ctx: Context) -> None:
    await _work(job, ctx)


@handles(Debounce)
async def debounce(job: Debounce, ctx: Context) -> None:
    await _work(job, ctx)
