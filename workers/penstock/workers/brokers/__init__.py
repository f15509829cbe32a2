"""Consumers take deliveries off a broker and settle them. Engines and the dispatcher share these.

One worker process has one consumer for all its queues. A delivery stays with it, its lease renewed by the consumer
itself, until it is acknowledged or released; a consumer that dies leaves its deliveries to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from penstock.producers.senders import scheme
from penstock.schemas.wire.codec import MESSAGE_BYTES
from penstock.workers.brokers.consumer import Consumer, Delivery

if TYPE_CHECKING:
    from penstock.workers.brokers.redis.lease_keeper import KeeperProcess

__all__ = ["Consumer", "Delivery", "open_consumer"]


def open_consumer(
    url: str,
    queues: Iterable[str],
    *,
    name: str,
    prefix: str = "penstock",
    lease_seconds: float = 15.0,
    lease_keeper: bool | KeeperProcess = False,
    weights: Mapping[str, int] | None = None,
    max_message_bytes: int = MESSAGE_BYTES,
) -> Consumer:
    """The consumer for a broker URL, not yet connected.

    Arguments:
        name: the worker's, unique among all, such as `celery@host-4711`.
        lease_seconds: how long its deliveries stay with it when it falls silent (Redis only; RabbitMQ sees the
            connection go).
        lease_keeper: start a small process that renews the leases while a handler holds the interpreter; for a
            consumer whose process runs handlers (Redis only). One that was started serves other consumers, too.
        weights: of the queues, 1 for those it leaves out: of two that always have jobs, each gets its share.
        max_message_bytes: of a larger message only the beginning is kept, and `Envelope.full_size` says so.
    """
    if scheme(url) == "redis":
        from penstock.workers.brokers.redis.consumer import RedisConsumer

        return RedisConsumer(
            url,
            queues,
            name=name,
            prefix=prefix,
            lease_seconds=lease_seconds,
            lease_keeper=lease_keeper,
            weights=weights,
            max_message_bytes=max_message_bytes,
        )
    from penstock.workers.brokers.rabbitmq.consumer import RabbitmqConsumer

    return RabbitmqConsumer(url, queues, name=name, prefix=prefix, weights=weights, max_message_bytes=max_message_bytes)
