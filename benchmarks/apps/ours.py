"""Penstock. The same jobs for both engines: the engine is the worker's, not the job's."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence

from benchmarks.apps.message import SLEEP_SECONDS, TASK
from benchmarks.ticks import tick
from penstock.producers import Producer
from penstock.schemas import Job
from penstock.workers import handles


class Noop(Job, kind="bench.noop", queue="bench", track=False):
    number: int
    text: str


class Tracked(Job, kind="bench.tracked", queue="bench"):
    number: int
    text: str


class Sleep(Job, kind="bench.sleep", queue="bench", track=False):
    number: int
    text: str


class Compute(Job, kind="bench.compute", queue="bench", track=False):
    number: int
    text: str


ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1000"))
"""Of a job that computes; a thousand take one to two milliseconds."""


async def noop(job: Noop | Tracked) -> None:
    tick(job.number)


def plain_noop(job: Noop | Tracked) -> None:
    tick(job.number)


@handles(Sleep)
async def sleep(job: Sleep) -> None:
    await asyncio.sleep(SLEEP_SECONDS)
    tick(job.number)


async def compute(job: Compute) -> None:
    plain_compute(job)


def plain_compute(job: Compute) -> None:
    for _ in range(ROUNDS):  # pieces too short to release the GIL
        hashlib.sha256(job.text.encode() * 100).digest()
    tick(job.number)


ON_POOL = os.environ.get("PENSTOCK_POOL") == "processes"  # which runs plain functions only

for _kind in (Noop, Tracked):
    handles(_kind)(plain_noop if ON_POOL else noop)
handles(Compute)(plain_compute if ON_POOL else compute)

_job = {"noop": Noop, "tracked": Tracked, "sleep": Sleep, "compute": Compute}[TASK]
_producer: Producer | None = None


def connect() -> None:
    global _producer
    _producer = Producer.from_settings()
    _producer.ping()


def enqueue(number: int, text: str) -> None:
    assert _producer is not None
    _producer.enqueue(_job(number=number, text=text))


def many(messages: Sequence[tuple[int, str]]) -> None:
    assert _producer is not None
    _producer.enqueue_many([_job(number=number, text=text) for number, text in messages])
