"""A stock Celery worker that consumes a queue of ours on RabbitMQ, as a user's own application would."""

from __future__ import annotations

import os

from celery import Celery
from kombu import Exchange, Queue

app = Celery("stock", broker=os.environ["STOCK_BROKER"])
# Penstock has declared the queue, with arguments of its own, and sends to it through the default exchange.
app.conf.task_queues = [
    Queue(
        os.environ["STOCK_QUEUE"],
        Exchange(""),
        os.environ["STOCK_QUEUE"],
        no_declare=True,
        queue_arguments={"x-queue-type": "quorum"},
    )
]
app.conf.task_acks_late = True
app.conf.worker_hijack_root_logger = False


@app.task(name="stock.append")
def append(file: str, text: str) -> None:
    with open(file, "a") as lines:
        lines.write(text + "\n")
