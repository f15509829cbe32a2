"""The workflows of the chaos runs: every step writes a row into the ledger's database, once."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa
from chaos_jobs import EFFECTS, QUEUE, RETRY
from pydantic import BaseModel

from penstock.schemas import Job
from penstock.workers import Context, handles
from penstock.workers.workflows import Workflow, step

OTHER_QUEUE = "chaos-other"
"""Consumed by the other engine."""


class Part(Job, kind="chaos.part", queue=QUEUE, retry=RETRY, delivery="once"):
    """Attributes: failures: attempts that fail before one succeeds."""

    number: int
    failures: int = 0


class Total(Job, kind="chaos.total", queue=OTHER_QUEUE, retry=RETRY, delivery="once"):
    number: int
    parts: list[int]


class Summed(BaseModel):
    parts: int
    total: int


@handles(Part)
async def part(job: Part, ctx: Context) -> int:
    await asyncio.sleep(0.02)
    if ctx.attempt <= job.failures:
        raise ValueError("failed on purpose")
    await ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))
    return job.number


@handles(Total)
async def total(job: Total, ctx: Context) -> Summed:
    await ctx.session.execute(sa.insert(EFFECTS).values(number=job.number))
    return Summed(parts=len(job.parts), total=sum(job.parts))


class Summing(Workflow, kind="chaos.summing", queue=OTHER_QUEUE):
    """A step, a fan-out, a step with all its results, and one after it.

    Attributes:
        first: the number of the first step; those of the others follow.
    """

    first: int
    parts: int

    @step
    def begin(self) -> Part:
        return Part(number=self.first)

    @step(after="begin")
    def each(self) -> list[Part]:
        numbers = range(self.first + 1, self.first + 1 + self.parts)
        return [Part(number=number, failures=int(number % 7 == 0)) for number in numbers]

    @step
    def sum(self, begin: int, each: list[int]) -> Total:
        return Total(number=self.first + self.parts + 1, parts=[begin, *each])

    @step
    def end(self, sum: Summed) -> Part:
        return Part(number=self.first + self.parts + 2)
