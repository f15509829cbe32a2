"""Huey."""

from __future__ import annotations

import time

from huey import RedisHuey
from redis import ConnectionPool

from benchmarks.apps.message import REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

# redis-py stops at 100 connections; each of its threads wants one.
_pool = ConnectionPool.from_url(REDIS_URL, max_connections=1000)
huey = RedisHuey("bench", connection_pool=_pool, results=False)


@huey.task(name="noop")
def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


@huey.task(name="sleep")
def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    time.sleep(SLEEP_SECONDS)
    tick(message.number)


_task = {"noop": noop, "sleep": sleep}[TASK]


def enqueue(number: int, text: str) -> None:
    _task(number=number, text=text)
