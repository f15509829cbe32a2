"""A user's Celery application before the move: two queues, shared tasks, and beat. It knows nothing of Penstock."""

from __future__ import annotations

import os

from celery import Celery, shared_task

MAILS, IMAGES = os.environ.get("SHOP_MAILS", "mails"), os.environ.get("SHOP_IMAGES", "images")

app = Celery("shop", broker=os.environ.get("SHOP_BROKER"))
app.conf.task_routes = {"shop.receipt": {"queue": MAILS}, "shop.resize": {"queue": IMAGES}}
app.conf.task_acks_late = True
app.conf.worker_hijack_root_logger = False
app.conf.beat_schedule = {"beat": {"task": "shop.receipt", "schedule": 1.0, "args": ("beat",)}}

if ours := os.environ.get("SHOP_PENSTOCK_QUEUE"):
    # Jobs that a producer of Penstock sends to the queue of images, on RabbitMQ: see "Producers first" in the docs.
    from kombu import Exchange, Queue

    quorum = Queue(ours, Exchange(""), ours, no_declare=True, queue_arguments={"x-queue-type": "quorum"})
    app.conf.task_queues = [Queue(IMAGES, Exchange(IMAGES), IMAGES), quorum]


def note(text: str) -> None:
    with open(os.environ["SHOP_FILE"], "a") as lines:
        lines.write(text + "\n")


@shared_task(name="shop.receipt")
def receipt(order: str, copies: int = 1) -> None:
    note(f"old receipt {order} {copies}")


@shared_task(name="shop.resize")
def resize(image: str) -> None:
    note(f"old resize {image}")
