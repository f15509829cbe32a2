"""`Consumer` and `Delivery`: how deliveries come off a broker and are settled."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.producers.senders.redis.connections import RedisConnections
from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers.turns import Turns

_MOST_HANDOVERS = 5
"""Far below the delivery limit (20): the others are for workers that die."""


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

    def may_go_on(self, seconds: float) -> bool:
        """Whether to release it, because it could not begin here for so long, and others may begin it earlier.

        Where the broker counts releases, each takes four times as long as the one before, and they end: they come off
        its delivery limit, and after the second an untracked job runs in a process of its own.
        """
        if not self.consumer.counts_releases:
            return True
        return self.deliveries <= _MOST_HANDOVERS and seconds >= 4.0 ** (self.deliveries - 1)


class Consumer(Protocol):
    """Fetching happens in one thread; `ack`, `release`, `wake` and the queue calls may come from any."""

    queues: set[str]
    paused: Container[str] = ()
    """Queues from which it fetches nothing for now."""
    blocked: bool = False
    """Whether its worker can begin nothing now; see `set_blocked`."""
    turns: Turns
    counts_releases: bool
    """Whether `Delivery.deliveries` also counts deliveries that were released unstarted, so that it does not show
    how often a worker died."""
    connections: RedisConnections | None = None
    """To its Redis, for all calls of its process; None: its broker is another."""
    step_at: float = 0.0
    """When the last step of `open` or `fetch` began, on the monotonic clock. A call has several, such as one for each
    lane, and each of them has time limits, so a call whose steps go on is not stuck."""

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

    @property
    def served(self) -> frozenset[str]:
        """The queues that it fetches from now."""
        return frozenset() if self.blocked else frozenset(queue for queue in self.queues if queue not in self.paused)

    def obey(self, paused: Container[str], weights: Mapping[str, int]) -> None:
        """Fetch from all queues but the paused ones, by these weights. What it holds of those others get at once, but
        for what `fetch` has returned."""
        self.paused, self.turns.weights = paused, weights
        self.wake()

    def set_blocked(self, blocked: bool) -> None:
        """Fetch nothing while blocked. Others get at once what it holds, but for what `fetch` has returned, and for
        deliveries that may not go on."""
        self.blocked = blocked
        self.wake()

    def wake(self) -> None:
        """Make a waiting `fetch` return early."""
        ...

    def rest(self, seconds: float) -> None:
        """Have nothing more sent until the next `fetch`, and let others have what came and was not fetched, as far as
        it may go on after so long; 0: it stays.
        """
        return  # a broker that hands out only what is fetched holds nothing

    def stop_consuming(self) -> None:
        """Let the broker hand out nothing more. Deliveries in hand stay, to be settled; do not call `fetch` again."""
        return  # a broker that hands out only what is fetched need not know

    def close(self) -> None: ...
