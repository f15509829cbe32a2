"""A Redis of a test's own, to be killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from penstock.workers.local.up.redis_server import RedisServer


class KillableRedis(RedisServer):
    """A Redis whose confirmed writes are on disk: with `everysec` it may lose its last second when killed."""

    def start(self) -> None:
        super().start()
        with Redis.from_url(self.url) as client:
            client.config_set("appendfsync", "always")


@contextmanager
def running_redis(folder: Path) -> Iterator[KillableRedis]:
    server = KillableRedis(folder / "redis")
    try:
        server.start()
        yield server
    finally:
        server.stop()
