"""streaQ."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from streaq import Worker

from benchmarks.apps.message import CONCURRENCY, REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

logging.getLogger("streaq").setLevel(logging.WARNING)
worker = Worker(redis_url=REDIS_URL, queue_name="bench", concurrency=CONCURRENCY or 100)
_stack = contextlib.AsyncExitStack()


@worker.task(ttl=0)
async def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


@worker.task(ttl=0)
async def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    await asyncio.sleep(SLEEP_SECONDS)
    tick(message.number)


_task = {"noop": noop, "sleep": sleep}[TASK]


async def connect() -> None:
    await _stack.enter_async_context(worker)


async def enqueue(number: int, text: str) -> None:
    await _task.enqueue(number=number, text=text)


async def many(messages: list[tuple[int, str]]) -> None:
    await worker.enqueue_many([_task.enqueue(number=number, text=text) for number, text in messages])
