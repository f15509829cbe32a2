"""arq."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings

from benchmarks.apps.message import CONCURRENCY, REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

uvloop.install()
_redis: ArqRedis | None = None


async def noop(ctx: Any, number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


async def sleep(ctx: Any, number: int, text: str) -> None:
    message = Message(number=number, text=text)
    await asyncio.sleep(SLEEP_SECONDS)
    tick(message.number)


class WorkerSettings:
    functions = (noop, sleep)
    redis_settings = RedisSettings.from_dsn(REDIS_URL)
    max_jobs = CONCURRENCY or 100
    poll_delay = 0.01
    keep_result = 0
    log_results = False


async def connect() -> None:
    global _redis
    _redis = await create_pool(RedisSettings.from_dsn(REDIS_URL))


async def enqueue(number: int, text: str) -> None:
    assert _redis is not None
    await _redis.enqueue_job(TASK, number, text)


quiet = {"version": 1, "disable_existing_loggers": False, "loggers": {"arq": {"level": "WARNING"}}}
"""Its `--custom-log-dict`: no line for each job."""
