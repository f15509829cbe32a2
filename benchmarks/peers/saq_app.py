"""SAQ."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvloop
from saq import Queue

from benchmarks.apps.message import CONCURRENCY, REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

uvloop.install()
logging.getLogger("saq").setLevel(logging.WARNING)
queue = Queue.from_url(REDIS_URL, name="bench")


async def noop(ctx: Any, *, number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


async def sleep(ctx: Any, *, number: int, text: str) -> None:
    message = Message(number=number, text=text)
    await asyncio.sleep(SLEEP_SECONDS)
    tick(message.number)


settings = {"queue": queue, "functions": [noop, sleep], "concurrency": CONCURRENCY or 10}


async def connect() -> None:
    await queue.connect()


async def enqueue(number: int, text: str) -> None:
    await queue.enqueue(TASK, number=number, text=text, ttl=-1)  # -1: keep no result
