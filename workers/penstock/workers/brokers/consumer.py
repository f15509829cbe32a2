"""`Consumer` and `Delivery`: how deliveries come off a broker and are settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.schemas.wire.codec import Envelope


@dataclass(slots=True, eq=False)
class Delivery:
    """An envelope in the hands of a consumer.

    Attributes:
        envelope: the message. For bytes that are not a message at all, headers are empty and the body is `raw`.
        raw: the bytes to keep if it does not decode.
        deliveries: how often the broker has handed it out, this time included; 1 at first.
        tag: the consumer's own reference, to settle it by.
        consumer: settles it.
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
    """Whether `Delivery.deliveries` also counts deliveries that were released unstarted, so that it does not show
    how often a worker died."""

    def open(self) -> None:
        """Connect and declare what is missing. Raises BrokerUnavailable."""
        ...

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        """Up to `limit` deliveries (of each lane), in the order of `Turns`; waits up to the timeout for the first.

        Raises:
            BrokerUnavailable: the connection is lost; call `open` again after a pause. Deliveries in hand stay valid
                on Redis and come again on RabbitMQ; settling them is then harmless.
        """
        ...

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle for good, in one round trip. Never raises for a lost connection: the job then comes again."""
        ...

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Release unstarted deliveries, for any consumer to get at once."""
        ...

    def drain_dead(self, limit: int) -> list[Delivery]:
        """Up to `limit` messages that the broker itself gave up on; acknowledge them once they are recorded."""
        ...

    def add_queue(self, queue: str) -> None:
        self.queues = self.queues | {queue}
        self.wake()

    def cancel_queue(self, queue: str) -> None:
        self.queues = self.queues - {queue}
        self.wake()

    def wake(self) -> None:
        """Make a waiting `fetch` return early."""
        ...

    def stop_consuming(self) -> None:
        """Let the broker hand out nothing more. Deliveries in hand stay, to be settled; do not call `fetch` again."""
        return  # a broker that hands out only what is fetched need not know

    def close(self) -> None: ...
