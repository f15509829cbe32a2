"""The workflows that are measured."""

from __future__ import annotations

from penstock.schemas import Job
from penstock.workers import handles
from penstock.workers.workflows import Workflow, step

QUEUE = "bench-workflows"


class Add(Job, kind="bench.add", queue=QUEUE):
    number: int


@handles(Add)
async def add(job: Add) -> int:
    return job.number + 1


class Chain(Workflow, kind="bench.chain", queue=QUEUE):
    """Ten steps, one after the other, each with the result of the one before."""

    number: int

    @step
    def s1(self) -> Add:
        return Add(number=self.number)

    @step
    def s2(self, s1: int) -> Add:
        return Add(number=s1)

    @step
    def s3(self, s2: int) -> Add:
        return Add(number=s2)

    @step
    def s4(self, s3: int) -> Add:
        return Add(number=s3)

    @step
    def s5(self, s4: int) -> Add:
        return Add(number=s4)

    @step
    def s6(self, s5: int) -> Add:
        return Add(number=s5)

    @step
    def s7(self, s6: int) -> Add:
        return Add(number=s6)

    @step
    def s8(self, s7: int) -> Add:
        return Add(number=s7)

    @step
    def s9(self, s8: int) -> Add:
        return Add(number=s8)

    @step
    def s10(self, s9: int) -> Add:
        return Add(number=s9)


class FanOut(Workflow, kind="bench.fanout", queue=QUEUE):
    """Fan-out of as many jobs as the input says, and a job that gets all their results."""

    jobs: int

    @step
    def each(self) -> list[Add]:
        return [Add(number=number) for number in range(self.jobs)]

    @step
    def total(self, each: list[int]) -> Add:
        return Add(number=sum(each))
