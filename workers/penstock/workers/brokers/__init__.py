"""Consumers take deliveries off a broker and settle them. Engines and the dispatcher share these.

One worker process has one consumer for all its queues. A delivery stays with it, its lease renewed by the consumer
itself, until it is acknowledged or released; a consumer that dies leaves its deliveries to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.producers.senders import scheme
from penstock.schemas.wire.codec import Envelope


@dataclass(slots=True, eq=False)
class Delivery:
    """One envelope in the hands of a consumer.

    Attributes:
        envelope: what was delivered. For bytes that are no message at all, headers are empty and the body is `raw`.
        raw: the bytes to keep if it does not decode.
        deliveries: how often the broker has handed it out, this time included; 1 at first.
        tag: what the consumer needs to settle it.
        consumer: who settles it.
    """

    envelope: Envelope
    raw: bytes
    deliveries: int
    tag: Any
    consumer: Consumer


class Consumer(Protocol):
    """Fetching happens in one thread; `ack`, `release`, `wake` and the queue calls may come from any."""

    queues: set[str]
    counts_releases: bool
    """Whether `Delivery.deliveries` also counts what was handed out and given back unstarted, so that it does not tell
    how often a worker died."""

    def open(self) -> None:
        """Connect and declare what is missing. Raises BrokerUnavailable."""
        ...

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        """Up to `limit` deliveries (of each lane), the higher lanes first; waits up to the timeout for the first.

        Raises:
            BrokerUnavailable: the connection is lost; call `open` again after a pause. Deliveries in hand stay valid
                on Redis and come again on RabbitMQ; settling them is then harmless.
        """
        ...

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle for good, in one round trip. Never raises for a lost connection: the job then comes again."""
        ...

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give back unstarted, to be delivered to anyone at once."""
        ...

    def drain_dead(self, limit: int) -> list[Delivery]:
        """Up to `limit` messages that the broker itself gave up on; acknowledge them once they are recorded."""
        ...

    def add_queue(self, queue: str) -> None: ...

    def cancel_queue(self, queue: str) -> None: ...

    def wake(self) -> None:
        """Make a waiting `fetch` return early."""
        ...

    def close(self) -> None: ...


def open_consumer(
    url: str,
    queues: Iterable[str],
    *,
    name: str,
    prefix: str = "penstock",
    lease_seconds: float = 15.0,
    keeper: bool = False,
) -> Consumer:
    """The consumer for a broker URL, not yet connected.

    Arguments:
        name: of this worker, unique among all, such as `celery@host-4711`.
        lease_seconds: how long its deliveries stay with it when it falls silent (Redis only; RabbitMQ sees the
            connection go).
        keeper: start a small process that keeps leases while a handler holds the interpreter; for a consumer whose
            process runs handlers (Redis only).
    """
    if scheme(url) == "redis":
        from penstock.workers.brokers.redis.consumer import RedisConsumer

        return RedisConsumer(url, queues, name=name, prefix=prefix, lease_seconds=lease_seconds, keeper=keeper)
    from penstock.workers.brokers.rabbitmq.consumer import RabbitmqConsumer

    return RabbitmqConsumer(url, queues, name=name, prefix=prefix)
