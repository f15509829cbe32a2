"""A user's Dramatiq application before the move: two queues of actors. It knows nothing of Penstock."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

MAILS, IMAGES = os.environ.get("SHOP_MAILS", "mails"), os.environ.get("SHOP_IMAGES", "images")

url = os.environ.get("SHOP_BROKER", "redis://")
broker = RabbitmqBroker(url=url) if url.startswith("amqp") else RedisBroker(url=url)
dramatiq.set_broker(broker)


def note(text: str) -> None:
    with open(os.environ["SHOP_FILE"], "a") as lines:
        lines.write(text + "\n")


@dramatiq.actor(actor_name="shop.receipt", queue_name=MAILS, max_retries=3)
def receipt(order: str, copies: int = 1) -> None:
    note(f"old receipt {order} {copies}")


@dramatiq.actor(actor_name="shop.resize", queue_name=IMAGES)
def resize(image: str) -> None:
    note(f"old resize {image}")
