"""Taskiq, on a Redis list, on a Redis stream or on RabbitMQ."""

from __future__ import annotations

import asyncio
import os

from taskiq import AsyncBroker
from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from benchmarks.apps.message import AMQP_URL, ON_RABBITMQ, REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

broker: AsyncBroker
if ON_RABBITMQ:
    broker = AioPikaBroker(AMQP_URL, qos=1000)
elif os.environ.get("BENCH_VARIANT") == "stream":
    broker = RedisStreamBroker(REDIS_URL, consumer_id="0")  # from the stream's start: the jobs are there first
else:
    broker = ListQueueBroker(REDIS_URL)


@broker.task(task_name="bench.noop")
async def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


@broker.task(task_name="bench.sleep")
async def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    await asyncio.sleep(SLEEP_SECONDS)
    tick(message.number)


_task = {"noop": noop, "sleep": sleep}[TASK]


async def connect() -> None:
    await broker.startup()


async def enqueue(number: int, text: str) -> None:
    await _task.kiq(number=number, text=text)
