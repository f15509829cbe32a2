"""Senders put envelopes on a broker. `open_sender` picks one by the URL's scheme.

Importing this package loads no client library; a sender imports its own when it connects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from penstock.config.errors import ConfigError
from penstock.producers.senders.backlogs import QueueBacklogs
from penstock.producers.senders.peeks import Peeks
from penstock.producers.senders.redis.sentinel import SCHEMES as SENTINEL_SCHEMES
from penstock.schemas.wire.codec import Envelope

if TYPE_CHECKING:
    from penstock.config.settings import Settings

REDIS_SCHEMES = ("redis", "rediss", "unix", *SENTINEL_SCHEMES)
RABBITMQ_SCHEMES = ("amqp", "amqps")


class Sender(Protocol):
    """Thread-safe; connects when first used; safe after a fork."""

    def send(self, envelopes: Sequence[Envelope]) -> None:
        """Hand all over to the broker, in order, and return when it has them (RabbitMQ: confirmed).

        Raises:
            BrokerUnavailable: within the timeout given at opening; names the host. Some may have been sent.
            QueueFull: a queue is at its `max_length`; none of this call's envelopes for it were sent.
        """
        ...

    def ping(self) -> None:
        """Raises BrokerUnavailable if the broker does not answer in time, or takes no jobs now."""
        ...

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """How many jobs wait in each queue, all lanes together; those being run are not counted."""
        ...

    def lane_depths(self, queues: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many jobs wait in each lane of each queue: queue, then priority, then the number."""
        ...

    def close(self) -> None: ...


class AsyncSender(Protocol):
    """Sender for one or more event loops."""

    async def send(self, envelopes: Sequence[Envelope]) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


def open_sender(
    url: str,
    *,
    prefix: str = "penstock",
    timeout_seconds: float = 5.0,
    max_lengths: dict[str, int] | None = None,
) -> Sender:
    """The sender for a broker URL. It does not connect yet.

    Arguments:
        max_lengths: queues with a limit of waiting jobs.

    Raises:
        ConfigError: the scheme is unknown.
    """
    match scheme(url):
        case "redis":
            from penstock.producers.senders.redis.sender import RedisSender

            return RedisSender(url, prefix=prefix, timeout_seconds=timeout_seconds, max_lengths=max_lengths or {})
        case _:
            from penstock.producers.senders.rabbitmq.sender import RabbitmqSender

            return RabbitmqSender(url, prefix=prefix, timeout_seconds=timeout_seconds, max_lengths=max_lengths or {})


def open_sender_from(settings: Settings) -> Sender:
    """Settings → the sender for their broker, without limits of queues. It does not connect yet.

    Raises:
        ConfigError: the scheme of `broker_url` is unknown.
    """
    return open_sender(settings.broker_url, prefix=settings.prefix, timeout_seconds=settings.broker_timeout_seconds)


def find_queues(settings: Settings) -> set[str]:
    """The names of all queues that the broker has under our prefix.

    Raises:
        BrokerUnavailable: the broker, or the management API of RabbitMQ, does not answer.
    """
    url, timeout_seconds = settings.broker_url, settings.broker_timeout_seconds
    match scheme(url):
        case "redis":
            from penstock.producers.senders.redis import queues as redis

            return redis.find_queues(url, settings.prefix, timeout_seconds)
        case _:
            from penstock.producers.senders.rabbitmq import queues as rabbitmq

            return rabbitmq.find_queues(url, settings.prefix, timeout_seconds, settings.rabbitmq_management_url)


def open_backlogs(settings: Settings) -> QueueBacklogs:
    """Settings → the backlogs of the queues of their broker. It does not connect yet.

    Raises:
        ConfigError: the scheme of `broker_url` is unknown.
    """
    url, prefix, timeout_seconds = settings.broker_url, settings.prefix, settings.broker_timeout_seconds
    match scheme(url):
        case "redis":
            from penstock.producers.senders.redis.backlogs import RedisBacklogs

            return RedisBacklogs(url, prefix, timeout_seconds)
        case _:
            from penstock.producers.senders.rabbitmq.backlogs import RabbitmqBacklogs

            return RabbitmqBacklogs(url, prefix, timeout_seconds, settings.rabbitmq_management_url)


def open_peeks(settings: Settings) -> Peeks | None:
    """Settings → a look at the jobs that wait in their broker. It does not connect yet.

    None: the broker is RabbitMQ, which shows a message only by delivering it. Returned unread, it counts as delivered
    all the same, and the queue's delivery limit buries jobs that were looked at too often.

    Raises:
        ConfigError: the scheme of `broker_url` is unknown.
    """
    if scheme(settings.broker_url) != "redis":
        return None
    from penstock.producers.senders.redis.peeks import RedisPeeks

    return RedisPeeks(settings.broker_url, settings.prefix, settings.broker_timeout_seconds)


def open_async_sender(
    url: str,
    *,
    prefix: str = "penstock",
    timeout_seconds: float = 5.0,
    max_lengths: dict[str, int] | None = None,
) -> AsyncSender:
    """`open_sender` for asyncio."""
    match scheme(url):
        case "redis":
            from penstock.producers.senders.redis.sender import AsyncRedisSender

            return AsyncRedisSender(url, prefix=prefix, timeout_seconds=timeout_seconds, max_lengths=max_lengths or {})
        case _:
            from penstock.producers.senders.rabbitmq.sender import AsyncRabbitmqSender

            return AsyncRabbitmqSender(
                url, prefix=prefix, timeout_seconds=timeout_seconds, max_lengths=max_lengths or {}
            )


def scheme(url: str) -> str:
    """`redis` or `rabbitmq`.

    Raises:
        ConfigError: for anything else.
    """
    url_scheme = urlsplit(url).scheme
    if url_scheme in REDIS_SCHEMES:
        return "redis"
    if url_scheme in RABBITMQ_SCHEMES:
        return "rabbitmq"
    if url_scheme in ("redis+cluster", "rediss+cluster"):
        raise ConfigError(
            f"broker URL with scheme {url_scheme!r}: Redis Cluster holds each queue on another server, which a worker "
            "of several queues cannot read from at once; use one server, or redis+sentinel://…?master=NAME"
        )
    raise ConfigError(
        f"broker URL with scheme {url_scheme!r}: use redis://, rediss://, redis+sentinel://, unix://, amqp:// or amqps://"
    )
