"""Stock Dramatiq."""

from __future__ import annotations

import os
import time

os.environ.setdefault("dramatiq_queue_prefetch", "100")  # for its Redis broker; RabbitMQ's is 2 x threads by itself

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Callbacks, Retries, ShutdownNotifications

from benchmarks.apps.message import AMQP_URL, ON_RABBITMQ, REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

# Its own default but for TimeLimit and Pipelines, which cost and are not used here.
_middleware = [AgeLimit(), ShutdownNotifications(), Callbacks(), Retries()]
broker: dramatiq.Broker
if ON_RABBITMQ:
    broker = RabbitmqBroker(
        url=AMQP_URL, confirm_delivery=bool(os.environ.get("BENCH_CONFIRMS")), middleware=_middleware
    )
else:
    broker = RedisBroker(url=REDIS_URL, middleware=_middleware)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


@dramatiq.actor(queue_name="bench")
def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    time.sleep(SLEEP_SECONDS)
    tick(message.number)


_actor = {"noop": noop, "sleep": sleep}[TASK]


def enqueue(number: int, text: str) -> None:
    _actor.send(number=number, text=text)
