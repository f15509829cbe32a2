"""FastStream on RabbitMQ: a framework for messages, without retries or results, so nearly a bare consumer."""

from __future__ import annotations

import asyncio
import os

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from benchmarks.apps.message import AMQP_URL, CONCURRENCY, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

broker = RabbitBroker(AMQP_URL, default_channel=Channel(prefetch_count=CONCURRENCY or 100), log_level=30)
app = FastStream(broker)
_queue = RabbitQueue("bench", durable=True)

if os.environ.get("BENCH_ROLE") == "worker":

    @broker.subscriber(_queue)
    async def consume(message: Message) -> None:
        if TASK == "sleep":
            await asyncio.sleep(SLEEP_SECONDS)
        tick(message.number)


async def connect() -> None:
    await broker.connect()
    await broker.declare_queue(_queue)


async def enqueue(number: int, text: str) -> None:
    await broker.publish(Message(number=number, text=text), _queue, persist=True)
