"""redis-py and no framework: one XADD a job, already encoded, for the limit of sending one by one."""

from __future__ import annotations

import itertools

from redis import Redis

from benchmarks.apps.message import REDIS_URL

_redis = Redis.from_url(REDIS_URL)
_FIELDS = {"h": b"h" * 300, "b": b"b" * 60}  # the size of a Penstock entry


def enqueue(number: int, text: str) -> None:
    _redis.xadd("bare", _FIELDS)


def many(messages: list[tuple[int, str]]) -> None:
    pipeline = _redis.pipeline(transaction=False)
    for _ in itertools.repeat(None, len(messages)):
        pipeline.xadd("bare", _FIELDS)
    pipeline.execute()
