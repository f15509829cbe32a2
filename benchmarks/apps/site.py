"""A FastAPI backend with two routes that differ in one thing: whether the job is enqueued."""

from __future__ import annotations

from fastapi import FastAPI

from penstock.producers.contrib.fastapi import Penstock, ProducerDep, Traces
from penstock.schemas import Job


class Noop(Job, kind="bench.noop", queue="bench", track=False):
    number: int
    text: str


penstock = Penstock(secret="of no use in a benchmark")
app = FastAPI(lifespan=penstock.lifespan)
app.add_middleware(Traces)
app.include_router(penstock.router, prefix="/penstock")


@app.post("/without")
async def without(job: Noop, producer: ProducerDep) -> dict[str, str]:
    return {"job": "0198e1a4-4f8c-7a51-9f5e-2f6f3d1f7c11"}


@app.post("/enqueue")
async def enqueue(job: Noop, producer: ProducerDep) -> dict[str, str]:
    return {"job": (await producer.enqueue(job)).id}
