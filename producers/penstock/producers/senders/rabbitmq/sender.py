"""Senders of envelopes to RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from penstock.config.errors import BrokerRefused, BrokerUnavailable, QueueFull
from penstock.producers.senders.rabbitmq.names import address
from penstock.schemas.wire.codec import Envelope

if TYPE_CHECKING:
    from penstock.producers.senders.rabbitmq.publisher import Publisher

T = TypeVar("T")

TRUST_IDLE_SECONDS = 300.0
"""An idle connection older than this is replaced: a firewall may have cut it without a word. Until then py-amqp's TCP
keepalive, every minute, holds it open."""
_TRUST_DEPTH_SECONDS = 0.5


class RabbitmqSender:
    """`Sender` over RabbitMQ, with publisher confirms: one connection, shared by all threads.

    `max_lengths` is checked before sending, against a count up to half a second old: producers that send at the same
    moment may together go past the limit by what they send in that time.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "penstock",
        timeout_seconds: float = 5.0,
        max_lengths: dict[str, int] | None = None,
    ) -> None:
        self.url, self.prefix, self.timeout_seconds = url, prefix, timeout_seconds
        self.max_lengths = max_lengths or {}
        self._lock = threading.Lock()
        self._publisher: Publisher | None = None
        # When the broker was last found to be unavailable, and why.
        self._failure: tuple[float, BrokerUnavailable] = (0.0, BrokerUnavailable())
        self._depths: dict[str, tuple[int, float]] = {}  # of a limited queue, and until when to believe it
        _senders.add(self)

    def send(self, envelopes: Sequence[Envelope], *, asked_at: float | None = None) -> None:
        waiting = dict(enumerate(envelopes))
        limited = Counter(envelope.queue for envelope in envelopes if envelope.queue in self.max_lengths)

        def publish(publisher: Publisher) -> None:
            for queue, count in limited.items():
                self._reserve(publisher, queue, count)
            limited.clear()
            publisher.publish(waiting)

        self._with_publisher(publish, asked_at)

    def ping(self, *, asked_at: float | None = None) -> None:
        self._with_publisher(lambda publisher: publisher.ping(), asked_at)

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {queue: sum(lanes.values()) for queue, lanes in self.lane_depths(queues).items()}

    def lane_depths(self, queues: Sequence[str]) -> dict[str, dict[str, int]]:
        return self._with_publisher(lambda publisher: publisher.depths(queues))

    def close(self) -> None:
        with self._lock:
            if self._publisher is not None:
                self._publisher.close()
                self._publisher = None

    def _reserve(self, publisher: Publisher, queue: str, count: int) -> None:
        limit = self.max_lengths[queue]
        depth, until = self._depths.get(queue, (0, 0.0))
        if time.monotonic() >= until or depth + count > limit:
            depth, until = publisher.depth(queue), time.monotonic() + _TRUST_DEPTH_SECONDS
        if depth + count > limit:
            raise QueueFull(queue, limit)
        self._depths[queue] = (depth + count, until)

    def _with_publisher(self, do: Callable[[Publisher], T], asked_at: float | None = None) -> T:
        """Call with a connected publisher; once more on a new one if the connection proves to be closed.

        What was published without a confirm is then published again, and may be there twice under the same job id:
        the claim absorbs it. Who asked before the broker was found to be away, and waited for its turn, does not
        wait for another timeout.
        """
        if asked_at is None:
            asked_at = time.monotonic()
        from penstock.producers.senders.rabbitmq.publisher import LOST, Publisher

        def connected() -> Publisher:
            self._publisher = Publisher(self.url, self.prefix, self.timeout_seconds)
            return self._publisher

        with self._lock:
            failed_at, failure = self._failure
            if failed_at >= asked_at:
                raise type(failure)(str(failure))
            publisher = self._publisher
            if publisher is not None and time.monotonic() - publisher.used_at > TRUST_IDLE_SECONDS:
                self._drop()
                publisher = None
            try:
                if publisher is None:
                    return do(connected())
                try:
                    return do(publisher)
                except LOST as error:
                    if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
                        raise
                    self._drop()
                    return do(connected())
            except QueueFull:
                raise
            except LOST as error:
                reason = f"RabbitMQ at {address(self.url)}: {error or type(error).__name__}"
                failure = BrokerUnavailable(reason)
                if self._publisher is not None and self._publisher.blocked:
                    failure = BrokerRefused(
                        f"{reason} (it blocks publishers: a memory or disk alarm, see `rabbitmqctl status`)"
                    )
                self._drop()
                self._failure = (time.monotonic(), failure)
                raise failure from error
            except BaseException:
                # Interrupted, or refused for good: the channel may be closed, and its confirms are out of step.
                self._drop()
                raise

    def _drop(self) -> None:
        if self._publisher is not None:
            self._publisher.connection.collect()
            self._publisher = None

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it
        if self._publisher is not None:
            self._publisher.abandon()
            self._publisher = None


_senders: weakref.WeakSet[RabbitmqSender] = weakref.WeakSet()


def _forget_connections() -> None:
    for sender in list(_senders):
        sender._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


class AsyncRabbitmqSender:
    """`AsyncSender` over RabbitMQ: the synchronous one in a thread of its own, as py-amqp knows no asyncio."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "penstock",
        timeout_seconds: float = 5.0,
        max_lengths: dict[str, int] | None = None,
    ) -> None:
        self._sender = RabbitmqSender(url, prefix=prefix, timeout_seconds=timeout_seconds, max_lengths=max_lengths)
        self._executor = _one_thread()

    async def send(self, envelopes: Sequence[Envelope]) -> None:
        await self._run(partial(self._sender.send, envelopes, asked_at=time.monotonic()))

    async def ping(self) -> None:
        await self._run(partial(self._sender.ping, asked_at=time.monotonic()))

    async def close(self) -> None:
        await self._run(self._sender.close)
        used, self._executor = self._executor, _one_thread()  # its thread starts if it is used again
        used.shutdown(wait=False)

    async def _run(self, do: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, do)


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="penstock-rabbitmq")
