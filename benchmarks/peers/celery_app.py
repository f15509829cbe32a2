"""Stock Celery."""

from __future__ import annotations

import time

from celery import Celery

from benchmarks.apps.message import BROKER_URL, ON_RABBITMQ, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

app = Celery("bench", broker=BROKER_URL)
app.conf.update(
    task_ignore_result=True,
    task_default_queue="bench",
    # "Optimizing" in Celery's guide: a large prefetch for many short tasks.
    worker_prefetch_multiplier=128,
    worker_disable_rate_limits=True,
    task_store_errors_even_if_ignored=False,
    broker_connection_retry_on_startup=True,
    worker_send_task_events=False,
    broker_transport_options={"confirm_publish": True} if ON_RABBITMQ else {},
)


@app.task(name="bench.noop")
def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


@app.task(name="bench.sleep")
def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    time.sleep(SLEEP_SECONDS)
    tick(message.number)


_task = {"noop": noop, "sleep": sleep}[TASK]


def connect() -> None:
    app.connection_for_write().ensure_connection(max_retries=1).release()


def enqueue(number: int, text: str) -> None:
    _task.apply_async(kwargs={"number": number, "text": text})
