"""The connection to RQ's Redis, which may be another server than the broker."""

from __future__ import annotations

import os

from redis import ConnectionPool, Redis

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings

VARIABLE = "RQ_REDIS_URL"
"""The variable that RQ's own commands read."""
_SCHEMES = ("redis://", "rediss://", "unix://")


class RqRedis(Redis):
    """A client of RQ's Redis, for threads."""


def connect(settings: Settings, *, timeout_seconds: float | None = None) -> RqRedis:
    """A client that connects when it is first used.

    Arguments:
        timeout_seconds: for an answer; None: RQ's worker sets its own.

    Raises:
        ConfigError: no URL says where RQ's Redis is.
    """
    url = os.environ.get(VARIABLE) or settings.broker_url
    if not url.startswith(_SCHEMES):
        raise ConfigError(f"--rq: set {VARIABLE}, as for RQ's own workers: the broker is not a Redis that RQ can use")
    try:
        pool = ConnectionPool.from_url(url, socket_timeout=timeout_seconds, health_check_interval=30)
    except ValueError as error:
        raise ConfigError(f"--rq: {VARIABLE}: {error}") from error
    return RqRedis(connection_pool=pool)
