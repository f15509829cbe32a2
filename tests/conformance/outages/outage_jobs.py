"""The jobs of the outage tests. What a job did outside the ledger is a line in a file; inside, a row in a table."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

import sqlalchemy as sa
from acme import append

from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles

OFTEN = RetryPolicy(max_attempts=50, first_delay=0.05, max_delay=0.2)
EFFECTS = sa.Table(
    "outage_effects",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
"""Rows that `Effect` writes with `ctx.session`. No unique constraint: the tests look for second rows."""


class Effect(Job, kind="outage.effect", queue="acme", delivery="once", retry=OFTEN):
    """Appends a line when it begins, works for `seconds`, then writes its row."""

    number: int
    file: str
    seconds: float = 0


class Open(Job, kind="outage.open", queue="acme", delivery="once"):
    """Appends a line, writes its row with `ctx.session`, and then works for `seconds` with the transaction open."""

    number: int
    file: str
    seconds: float


class OpenInThread(Job, kind="outage.openinthread", queue="acme", delivery="once"):
    """`Effect` in a plain function."""

    number: int
    file: str
    seconds: float


class GreedyOnce(Job, kind="outage.greedyonce", queue="acme", delivery="once"):
    """Appends a line and then holds the interpreter."""

    file: str
    seconds: int


class GreedyMost(Job, kind="outage.greedymost", queue="acme", delivery="at_most_once"):
    file: str
    seconds: int


class Most(Job, kind="outage.most", queue="acme", delivery="at_most_once"):
    file: str
    seconds: float


@handles(Effect)
async def effect(job: Effect, ctx: Context) -> None:
    append(job.file, f"{job.number} {os.getpid()}")
    await asyncio.sleep(job.seconds)
    await ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))


@handles(Open)
async def open_(job: Open, ctx: Context) -> None:
    append(job.file, str(job.number))
    await ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))
    await asyncio.sleep(job.seconds)


@handles(OpenInThread)
def open_in_thread(job: OpenInThread, ctx: Context) -> None:
    append(job.file, str(job.number))
    ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))
    time.sleep(job.seconds)


def _hold(job: GreedyOnce | GreedyMost) -> None:
    append(job.file, str(os.getpid()))
    ctypes.PyDLL(None).usleep(job.seconds * 1_000_000)  # the functions of a PyDLL keep the GIL


@handles(GreedyOnce)
def greedy_once(job: GreedyOnce) -> None:
    _hold(job)


@handles(GreedyMost)
def greedy_most(job: GreedyMost) -> None:
    _hold(job)


@handles(Most)
async def most(job: Most) -> None:
    append(job.file, str(os.getpid()))
    await asyncio.sleep(job.seconds)
