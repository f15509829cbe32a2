"""The actors of a web shop. Nothing in this package knows of Penstock."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, GroupCallbacks, Interrupt, TimeLimitExceeded
from dramatiq.middleware.prometheus import Prometheus
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import RedisBackend as LimitsBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as ResultsBackend

BROKER = os.environ.get("SHOP_BROKER", "redis://127.0.0.1:6379/0")
REDIS = os.environ.get("SHOP_REDIS", "redis://127.0.0.1:6379/0")
MAILS, IMAGES = os.environ.get("SHOP_MAILS", "mails"), os.environ.get("SHOP_IMAGES", "images")
DIARY = Path(os.environ.get("SHOP_DIARY", "diary.jsonl"))

broker: dramatiq.Broker = RabbitmqBroker(url=BROKER) if BROKER.startswith("amqp") else RedisBroker(url=BROKER)
limits = LimitsBackend(url=REDIS)
for middleware in (
    CurrentMessage(),
    AsyncIO(),
    GroupCallbacks(limits),
    Prometheus(),
    Results(backend=ResultsBackend(url=REDIS)),
):
    broker.add_middleware(middleware)
dramatiq.set_broker(broker)


def note(*words: Any) -> None:
    """Write a line into the shop's diary."""
    with DIARY.open("a") as lines:
        lines.write(json.dumps(words) + "\n")


@dramatiq.actor(queue_name=MAILS, store_results=True)
def price(order: str, pieces: int) -> int:
    return pieces * 3


@dramatiq.actor(queue_name=MAILS)
def invoice(order: str, total: int) -> None:
    message = CurrentMessage.get_current_message()
    assert message is not None
    note("invoice", order, total, message.actor_name)


@dramatiq.actor(queue_name=IMAGES, priority=-10)
def resize(image: str) -> None:
    note("resize", image)


@dramatiq.actor(queue_name=IMAGES)
def gallery(name: str) -> None:
    note("gallery", name)


@dramatiq.actor(queue_name=MAILS, max_retries=3, min_backoff=100, max_backoff=300)
def flaky(order: str) -> None:
    """Fails twice."""
    message = CurrentMessage.get_current_message()
    assert message is not None
    retries = message.options.get("retries", 0)
    note("flaky", order, retries)
    if retries < 2:
        raise ConnectionError("the bank does not answer")


@dramatiq.actor(queue_name=MAILS, max_retries=1, min_backoff=100, max_backoff=100, store_results=True)
def refused(order: str) -> None:
    raise ValueError(f"order {order} has no address")


@dramatiq.actor(queue_name=MAILS, throws=(PermissionError,), max_retries=5)
def forbidden(order: str) -> None:
    note("forbidden", order)
    raise PermissionError("not for this customer")


@dramatiq.actor(queue_name=MAILS)
def complain(data: dict[str, Any], error: dict[str, Any]) -> None:
    note("complaint", data["actor_name"], error["type"])


@dramatiq.actor(queue_name=MAILS)
def celebrate(data: dict[str, Any], result: Any) -> None:
    note("celebration", data["actor_name"], result)


@dramatiq.actor(queue_name=MAILS, time_limit=500, max_retries=0)
def endless(order: str) -> None:
    try:
        while True:
            time.sleep(0.01)
    except TimeLimitExceeded:
        note("endless", order)
        raise


@dramatiq.actor(queue_name=MAILS)
async def translate(text: str) -> None:
    await asyncio.sleep(0.01)
    resize.send(f"{text}.png")
    note("translate", text)


@dramatiq.actor(queue_name=MAILS, min_backoff=50, max_backoff=100)
def bank(order: str) -> None:
    """Two at a time; others are tried again."""
    with ConcurrentRateLimiter(limits, f"{MAILS}-bank", limit=2).acquire():
        time.sleep(0.05)
        note("bank", order)


@dramatiq.actor(queue_name=MAILS, max_age=1)
def offer(order: str) -> None:
    note("offer", order)


@dramatiq.actor(queue_name=MAILS, notify_shutdown=True, min_backoff=100, max_backoff=100)
def newsletter(issue: int) -> None:
    """Takes long, and stops when its worker does, or when it is aborted."""
    note("newsletter", issue)
    try:
        while True:
            time.sleep(0.01)
    except Interrupt:
        note("interrupted", issue)
        raise


@dramatiq.actor(queue_name=MAILS)
def count(number: int) -> None:
    time.sleep(0.05)
    note("count", number)
