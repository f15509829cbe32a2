"""tarsk."""

from __future__ import annotations

import asyncio

from tarsk import App

from benchmarks.apps.message import REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

app = App(broker=REDIS_URL)


@app.task(name="noop", queue="bench")
async def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


@app.task(name="sleep", queue="bench")
async def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    await asyncio.sleep(SLEEP_SECONDS)
    tick(message.number)


_task = {"noop": noop, "sleep": sleep}[TASK]


def connect() -> None:
    app.producer()


def enqueue(number: int, text: str) -> None:
    _task.send(number=number, text=text)
