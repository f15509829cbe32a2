"""ArdiQ."""

from __future__ import annotations

import asyncio

import uvloop
from ardiq import Ardiq

from benchmarks.apps.message import CONCURRENCY, REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

uvloop.install()
app = Ardiq(redis_url=REDIS_URL, queue_name="bench", concurrency=CONCURRENCY or 100, result_ttl_ms=0)


@app.task
async def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


@app.task
async def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    await asyncio.sleep(SLEEP_SECONDS)
    tick(message.number)


_task = {"noop": noop, "sleep": sleep}[TASK]


async def enqueue(number: int, text: str) -> None:
    await _task.enqueue(number=number, text=text)


async def many(messages: list[tuple[int, str]]) -> None:
    await app.enqueue_many([_task.prepare(number=number, text=text) for number, text in messages])
