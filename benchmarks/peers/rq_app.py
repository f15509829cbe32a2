"""RQ."""

from __future__ import annotations

import time

from redis import Redis
from rq import Queue, SimpleWorker

from benchmarks.apps.message import REDIS_URL, SLEEP_SECONDS, TASK, Message
from benchmarks.ticks import tick

_redis = Redis.from_url(REDIS_URL)
_queue = Queue("bench", connection=_redis)


def noop(number: int, text: str) -> None:
    tick(Message(number=number, text=text).number)


def sleep(number: int, text: str) -> None:
    message = Message(number=number, text=text)
    time.sleep(SLEEP_SECONDS)
    tick(message.number)


_function = f"benchmarks.peers.rq_app.{TASK}"


def enqueue(number: int, text: str) -> None:
    _queue.enqueue(_function, number=number, text=text, result_ttl=0)


def many(messages: list[tuple[int, str]]) -> None:
    prepare = Queue.prepare_data
    _queue.enqueue_many(
        [prepare(_function, kwargs={"number": number, "text": text}, result_ttl=0) for number, text in messages]
    )


if __name__ == "__main__":
    SimpleWorker([_queue], connection=_redis).work(logging_level="WARNING")
