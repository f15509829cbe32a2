"""Deliveries off RabbitMQ's quorum queues.

py-amqp is not thread-safe, so one lock is held around every use of the connection; a waiting `fetch` releases it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from amqp.exceptions import InternalError

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.config.supervision import start_thread
from penstock.producers.senders.rabbitmq.names import address, lane_name
from penstock.producers.senders.rabbitmq.publisher import LOST, connect, declare_dead, declare_lane
from penstock.schemas.jobs.kind import PRIORITIES, Priority
from penstock.schemas.wire.codec import MESSAGE_BYTES
from penstock.workers.brokers.consumer import Consumer, Delivery
from penstock.workers.brokers.rabbitmq.channel import Channel, read_in_blocks
from penstock.workers.brokers.rabbitmq.dead_letters import DeadLetterQueue
from penstock.workers.brokers.rabbitmq.leaders import FIRST_PAUSE, NoLeader, SuspendedLanes
from penstock.workers.brokers.rabbitmq.lenient_frames import read_leniently
from penstock.workers.brokers.turns import Lane, Turns
from penstock.workers.brokers.wakeup import Wakeup, readable

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20
_BLOCKED_SECONDS = 1.0
"""A worker counts as blocked after so long."""
_SHRINK_SECONDS = 2.0
"""For so long much less was wanted than is prefetched, before the prefetch shrinks."""


class RabbitmqConsumer(Consumer):
    """`Consumer` over RabbitMQ.

    Each lane delivers as many unsettled messages as the worker wanted to hold within the last seconds: those in its
    hands and the `limit` of its fetch, and one more of the higher lanes. A worker that fetches no more releases what it
    was sent beyond that (`rest`); until then it may keep the next job of each lane from an idle one.

    RabbitMQ closes the channel of a delivery that is not settled within its consumer timeout (30 minutes unless
    configured); that shows as a lost connection.

    RabbitMQ closes the whole connection that asks for a queue without a leader, which is a queue whose nodes are mostly
    down. Such a lane is suspended, so that the others go on, and checked on connections of its own (`leaders`).
    """

    counts_releases = True

    def __init__(
        self,
        url: str,
        queues: Iterable[str],
        *,
        name: str,
        prefix: str = "penstock",
        timeout_seconds: float = 5.0,
        weights: Mapping[str, int] | None = None,
        max_message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self.queues = set(queues)
        self.url, self.name, self.prefix, self.timeout_seconds = url, name, prefix, timeout_seconds
        self.address = address(url)
        self._lock = threading.RLock()
        self._wakeup = Wakeup()
        self._connection: Any = None
        self._lost: Exception | None = None
        self._channel: Channel | None = None
        self._dead_letters = DeadLetterQueue(url, prefix, timeout_seconds, self, max_message_bytes)
        self._max_message_bytes = max_message_bytes
        self._suspended = SuspendedLanes(url, timeout_seconds)
        self._tags: dict[str, str] = {}  # consumer tags by the name of their lane
        self._lanes: dict[str, Lane] = {}  # by consumer tag
        self._numbers = itertools.count(1)
        self._prefetch = self._most_wanted = 0
        self._shrink_at = 0.0
        self._stopped = self._rests = False
        self.turns = Turns(weights)
        self._ready: defaultdict[Lane, deque[Delivery]] = defaultdict(deque)
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None

    def open(self) -> None:
        with self._lock:
            self._connect()
        if self._heart is None:
            self._heart = start_thread("penstock heartbeat", self._beat, self._closing)

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout_seconds
        woken = self._rests = False
        while True:
            self.step_at = time.monotonic()
            with self._lock:
                self._check()
                try:
                    if self._rests:
                        return []
                    if limit > 0:  # a prefetch of 0 would be none
                        self._consume(limit)
                    self._drain()
                except ConfigError:
                    raise
                except NoLeader:
                    self._connect()
                    continue
                except Exception as error:  # frames that py-amqp cannot read too: the rest is out of step then
                    self._fail(error)
                deliveries = self.turns.take(self.served, self._ready, limit)
                socket = self._connection.transport.sock
            left = deadline - time.monotonic()
            if deliveries or woken or left <= 0:
                return deliveries
            woken = self._wakeup.wait([socket], left)[1]

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle for good. The broker does not confirm it: after a lost connection the jobs come again."""
        self._settle(deliveries, Channel.ack)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(deliveries, Channel.release)

    def drain_dead(self, limit: int) -> list[Delivery]:
        """Up to `limit` messages of any queue that RabbitMQ itself gave up on; acknowledge them once recorded.

        None while their own queue cannot be read: the log says so.

        Raises:
            BrokerUnavailable: the consumer is not open, or its connection is lost.
        """
        with self._lock:
            self._check()
            return self._dead_letters.fetch(limit)

    def stop_consuming(self) -> None:
        """Release what RabbitMQ has pushed and no one has fetched: a drain may last, and others are free."""
        with self._lock:
            self._stopped = True
            self._consume_served()

    def rest(self, seconds: float) -> None:
        with self._lock:
            if self._connection is None or self._lost is not None:
                return
            try:
                self._rests = True  # also for a fetch that waits
                for name in list(self._tags):
                    self._cancel(name)
                self._prefetch = 0
                self._drain()
                for lane, ready in self._ready.items() if seconds else ():
                    self.release([delivery for delivery in ready if delivery.may_go_on(seconds)])
                    self._ready[lane] = deque(delivery for delivery in ready if not delivery.may_go_on(seconds))
            except Exception as error:  # then it gives everything to others by itself
                self._lose(error)

    def obey(self, paused: Container[str], weights: Mapping[str, int]) -> None:
        with self._lock:
            super().obey(paused, weights)
            self._consume_served()

    def set_blocked(self, blocked: bool) -> None:
        with self._lock:
            super().set_blocked(blocked)
            self._consume_served()

    @property
    def served(self) -> frozenset[str]:
        return frozenset() if self._stopped else super().served

    def _consume_served(self) -> None:
        """Consume what is served, and nothing else: the next fetch may be far, as long as all slots are taken."""
        if self._connection is not None and self._lost is None:
            try:
                if self._prefetch > 0:
                    self._consume(0)
                else:
                    self._release_unserved()
            except Exception as error:  # then it gives everything to others by itself
                self._lose(error)

    def wake(self) -> None:
        self._wakeup.set()

    def close(self) -> None:
        """Leave; RabbitMQ gives what was not settled to others."""
        self._closing.set()
        self._wakeup.set()
        if self._heart is not None:
            self._heart.join()
            self._heart = None
        with self._lock:
            self._closing.clear()
            if self._connection is not None:
                with suppress(*LOST):
                    self._connection.close()
            self._disconnect()
            self._wakeup.close()

    def _connect(self) -> None:
        self._disconnect()
        if self._suspended and not self._lanes_wanted():
            self._suspended.clear()  # the broker itself may be the reason
        while self._connection is None:
            self.step_at = time.monotonic()
            try:
                self._connection = connect(
                    self.url,
                    timeout_seconds=self.timeout_seconds,
                    heartbeat_seconds=HEARTBEAT_SECONDS,
                    name=self.name,
                )
                read_in_blocks(self._connection)
                read_leniently(self._connection, self._max_message_bytes)
                self._channel = Channel(self._connection)
                declare_dead(self._channel.amqp, self.prefix)
                for name, (queue, priority) in self._lanes_wanted().items():
                    with self._suspending(name):
                        declare_lane(self._channel.amqp, self.prefix, queue, priority)
            except NoLeader:
                self._disconnect()
            except LOST as error:
                self._fail(error)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.collect()
        self._dead_letters.disconnect()
        self._connection = self._channel = self._lost = None
        self._tags, self._lanes, self._prefetch = {}, {}, 0
        self._ready.clear()

    def _check(self) -> None:
        if self._connection is None:
            raise BrokerUnavailable(f"RabbitMQ at {self.address}: not connected; open the consumer")
        if self._lost is not None:  # by another thread, which must not close the socket that this one waits on
            self._fail(self._lost)

    def _fail(self, error: Exception) -> NoReturn:
        self._disconnect()
        raise BrokerUnavailable(f"RabbitMQ at {self.address}: {error or type(error).__name__}") from error

    def _lanes_wanted(self) -> dict[str, Lane]:
        """Queue and priority by the name of the lane, without the suspended lanes."""
        lanes = {lane_name(self.prefix, queue, p): (queue, p) for queue in sorted(self.served) for p in PRIORITIES}
        return {name: lane for name, lane in lanes.items() if name not in self._suspended}

    @contextmanager
    def _suspending(self, name: str) -> Iterator[None]:
        """Suspend the lane if RabbitMQ refuses a request for it here, or does not answer."""
        self.step_at = time.monotonic()
        try:
            yield
        except (InternalError, TimeoutError) as error:
            self._suspended.add(name)
            if not self._lanes_wanted():
                raise  # all lanes fail: it is the broker, not a leader
            log.error("RabbitMQ at %s: queue %s has no leader; the others go on: %s", self.address, name, error)
            raise NoLeader from error

    def _consume(self, limit: int) -> None:
        """Consume the lanes that are served and no others, with a prefetch of `limit` more."""
        assert self._channel is not None
        lanes = self._lanes_wanted()
        for name in lanes.keys() - self._tags.keys():
            if self._ready.get(lanes[name]):  # what stayed while nothing was sent is fetched first
                del lanes[name]
        prefetch = self._prefetch_for(self._in_hand() + limit)
        if prefetch != self._prefetch or lanes.keys() != self._tags.keys():
            for name in [name for name in self._tags if prefetch != self._prefetch or name not in lanes]:
                self._cancel(name)
            self._prefetch = prefetch
            for name, (queue, priority) in lanes.items():
                if name not in self._tags:
                    with self._suspending(name):
                        self._consume_lane(name, queue, priority)
        self._release_unserved()

    def _release_unserved(self) -> None:
        """Release what was prefetched and is not to be fetched; while blocked, as far as it may go on."""
        served = self.served
        for lane in [lane for lane in self._ready if lane[0] not in served]:
            ready = self._ready.pop(lane)
            if stays := [delivery for delivery in ready if self.blocked and not delivery.may_go_on(_BLOCKED_SECONDS)]:
                self._ready[lane].extend(stays)
            self.release([delivery for delivery in ready if delivery.may_go_on(_BLOCKED_SECONDS) or not self.blocked])

    def _in_hand(self) -> int:
        assert self._channel is not None
        return len(self._channel.unsettled) - sum(map(len, self._ready.values()))

    def _prefetch_for(self, count: int) -> int:
        """The prefetch for a worker that wants to hold so many. A change costs a round trip for each lane, so it grows
        in steps, and shrinks when much less was wanted for a while."""
        self._most_wanted = max(self._most_wanted, count)
        if count > self._prefetch:
            return max(count, self._prefetch * 5 // 4)
        if (now := time.monotonic()) < self._shrink_at:
            return self._prefetch
        most, self._most_wanted, self._shrink_at = self._most_wanted, count, now + _SHRINK_SECONDS
        return most if 2 * most < self._prefetch else self._prefetch

    def _cancel(self, name: str) -> None:
        """Have no more pushed of this lane."""
        assert self._channel is not None
        tag = self._tags.pop(name)
        with self._suspending(name):
            self._channel.amqp.basic_cancel(tag)
        del self._lanes[tag]

    def _consume_lane(self, name: str, queue: str, priority: Priority) -> None:
        assert self._channel is not None
        channel = self._channel.amqp
        declare_lane(channel, self.prefix, queue, priority)
        # A tag used again, with messages of its first use unsettled, is an internal error in RabbitMQ 3.10.
        tag = f"{self.name}-{next(self._numbers)}"
        self._tags[name], self._lanes[tag] = tag, (queue, priority)
        # One more for all but the last lane: its next job must be here before one of a lower lane is chosen.
        ahead = self._prefetch + int(priority != PRIORITIES[-1])
        channel.basic_qos(0, ahead, False)  # for consumers that start from now on
        channel.basic_consume(name, consumer_tag=tag, callback=self._on_message)

    def _drain(self) -> None:
        """Read every frame that is there, without waiting."""
        transport = self._connection.transport
        while transport._read_buffer or readable(transport.sock):
            self._connection.blocking_read(self.timeout_seconds)

    def _on_message(self, message: Any) -> None:
        assert self._channel is not None
        queue, priority = self._lanes[message.delivery_info["consumer_tag"]]
        self._ready[queue, priority].append(self._channel.delivery(message, queue, priority, self))

    def _settle(self, deliveries: Sequence[Delivery], settle: Callable[[Channel, set[int]], None]) -> None:
        numbers: defaultdict[Channel, set[int]] = defaultdict(set)
        for delivery in deliveries:
            channel, number = delivery.tag
            numbers[channel].add(number)
        with self._lock:
            for channel, settled in numbers.items():
                if channel not in (self._channel, self._dead_letters.channel):
                    continue  # the connection was lost: its messages come again
                try:
                    settle(channel, settled)
                except LOST as error:
                    if channel is self._dead_letters.channel:
                        self._dead_letters.disconnect()
                    else:
                        self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._lost = error
        self._wakeup.set()

    def _beat(self) -> None:
        """Send heartbeats while no fetch does, notice a silent server, and check the suspended lanes."""
        while not self._closing.wait(FIRST_PAUSE if self._suspended else HEARTBEAT_SECONDS / 4):
            if led := self._suspended.check():
                with self._lock:
                    self._suspended.remove(led)
                self._wakeup.set()
            with self._lock:
                if self._connection is None or self._lost is not None:
                    continue
                try:
                    self._drain()
                    self._connection.heartbeat_tick()
                except Exception as error:  # whatever it is, fetch must raise it
                    log.warning("RabbitMQ at %s: %s", self.address, error)
                    self._lose(error)
                if any(self._ready.values()):
                    self._wakeup.set()  # read off the socket under a waiting fetch
