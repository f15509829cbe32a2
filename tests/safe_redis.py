"""A Redis of a test's own, to be killed."""

from __future__ import annotations

from redis import Redis

from penstock.workers.up.redis_server import RedisServer


class SafeRedis(RedisServer):
    """It has on disk what it has confirmed: with `everysec` it may itself lose its last second when killed."""

    def start(self) -> None:
        super().start()
        with Redis.from_url(self.url) as client:
            client.config_set("appendfsync", "always")
