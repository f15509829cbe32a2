"""Deliveries off RabbitMQ's quorum queues.

py-amqp is not thread-safe, so one lock is held around every use of the connection; a waiting `fetch` lets go of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from amqp.exceptions import InternalError

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.producers.senders.rabbitmq.publisher import LOST, connect, declare_dead, declare_lane
from penstock.producers.senders.rabbitmq.sender import address, dead_name, lane_name, lane_of
from penstock.schemas.jobs.kind import PRIORITIES, Priority
from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers import Delivery
from penstock.workers.brokers.rabbitmq.channel import FIRST_PAUSE, Aside, Channel, has_leader
from penstock.workers.brokers.rabbitmq.lenient_frames import plain, read_leniently
from penstock.workers.brokers.wakeup import Wakeup, readable

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20
_READ_SIZE = 16_384
_BROKERS_HEADERS = ("x-delivery-count", "x-acquired-count", "x-death", "x-first-death-", "x-last-death-")


class _NoLeader(Exception):
    """A lane's queue has no leader now, and RabbitMQ closed the connection for asking."""


class RabbitmqConsumer:
    """`Consumer` over RabbitMQ.

    Each lane hands out as many unsettled messages as the worker ever wanted to hold: those in its hands and the
    `limit` of its fetch, and one more of the higher lanes. So a busy worker may keep the next job of each lane from an
    idle one until it is done with its own.

    RabbitMQ closes the channel of a delivery that is not settled within its consumer timeout (30 minutes unless
    configured); that shows as a lost connection.

    It closes the whole connection of one that asks for a queue without a leader, which is a queue whose nodes are
    mostly down. Such a lane is put aside, so that the others go on, and looked at on connections of their own.
    """

    counts_releases = True

    def __init__(
        self, url: str, queues: Iterable[str], *, name: str, prefix: str = "penstock", timeout_seconds: float = 5.0
    ) -> None:
        self.queues = set(queues)
        self.url, self.name, self.prefix, self.timeout_seconds = url, name, prefix, timeout_seconds
        self.address = address(url)
        self._lock = threading.RLock()
        self._wakeup = Wakeup()
        self._connection: Any = None
        self._lost: Exception | None = None
        self._channel: Channel | None = None
        self._dead_connection: Any = None  # its own: what goes wrong there must not take the jobs in hand with it
        self._dead: Channel | None = None
        self._dead_aside: Aside | None = None
        self._aside: dict[str, Aside] = {}  # by the name of the lane
        self._tags: dict[str, str] = {}  # of the consumers, by the name of their lane
        self._lanes: dict[str, tuple[str, Priority]] = {}  # by consumer tag
        self._numbers = itertools.count(1)
        self._prefetch = 0
        self._ready: dict[Priority, deque[Delivery]] = {priority: deque() for priority in PRIORITIES}
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None

    def open(self) -> None:
        with self._lock:
            self._connect()
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="penstock-heartbeat", daemon=True)
            self._heart.start()

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout_seconds
        woken = False
        while True:
            with self._lock:
                self._check()
                try:
                    if limit > 0:  # a prefetch of 0 would be none
                        self._consume(limit)
                    self._drain()
                except ConfigError:
                    raise
                except _NoLeader:
                    self._connect()
                    continue
                except Exception as error:  # frames that py-amqp cannot read too: the rest is out of step then
                    self._fail(error)
                found = self._take(limit)
                socket = self._connection.transport.sock
            left = deadline - time.monotonic()
            if found or woken or left <= 0:
                return found
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
        drained: list[Delivery] = []
        with self._lock:
            self._check()
            if self._dead_aside is not None and time.monotonic() < self._dead_aside.look_at:
                return []
            try:
                if self._dead is None:
                    self._dead_connection = connect(self.url, timeout_seconds=self.timeout_seconds)
                    read_leniently(self._dead_connection)
                    self._dead = Channel(self._dead_connection)
                while len(drained) < limit and (message := self._dead.amqp.basic_get(dead_name(self.prefix))):
                    queue, priority = lane_of(self.prefix, message.delivery_info["routing_key"])
                    delivery = self._delivery(self._dead, message, queue, priority)
                    delivery.envelope.headers = plain(delivery.envelope.headers)
                    drained.append(delivery)
            except LOST as error:
                self._disconnect_dead()
                if self._dead_aside is None:
                    log.error("RabbitMQ at %s: %s cannot be emptied: %s", self.address, dead_name(self.prefix), error)
                    self._dead_aside = Aside()
                else:
                    self._dead_aside.look_later()
                return []
            self._dead_aside = None
        return drained

    def add_queue(self, queue: str) -> None:
        self.queues = self.queues | {queue}
        self.wake()

    def cancel_queue(self, queue: str) -> None:
        self.queues = self.queues - {queue}
        self.wake()

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
        if self._aside and not self._lanes_wanted():
            self._aside.clear()  # it may as well be the broker
        while self._connection is None:
            try:
                self._connection = connect(
                    self.url, timeout_seconds=self.timeout_seconds, heartbeat_seconds=HEARTBEAT_SECONDS
                )
                self._read_in_blocks()
                read_leniently(self._connection)
                self._channel = Channel(self._connection)
                declare_dead(self._channel.amqp, self.prefix)
                for name, (queue, priority) in self._lanes_wanted().items():
                    with self._blaming(name):
                        declare_lane(self._channel.amqp, self.prefix, queue, priority)
            except _NoLeader:
                self._disconnect()
            except LOST as error:
                self._fail(error)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.collect()
        self._disconnect_dead()
        self._connection = self._channel = self._lost = None
        self._tags, self._lanes, self._prefetch = {}, {}, 0
        for ready in self._ready.values():
            ready.clear()

    def _disconnect_dead(self) -> None:
        if self._dead_connection is not None:
            self._dead_connection.collect()
        self._dead_connection = self._dead = None

    def _check(self) -> None:
        if self._connection is None:
            raise BrokerUnavailable(f"RabbitMQ at {self.address}: not connected; open the consumer")
        if self._lost is not None:  # found by another thread, which must not close the socket we wait on
            self._fail(self._lost)

    def _fail(self, error: Exception) -> NoReturn:
        self._disconnect()
        raise BrokerUnavailable(f"RabbitMQ at {self.address}: {error or type(error).__name__}") from error

    def _read_in_blocks(self) -> None:
        """py-amqp reads every frame in three small pieces from a plain socket, six system calls each time.

        Given more than it asked for it keeps the rest, as it does over TLS.
        """
        transport = self._connection.transport
        if hasattr(transport, "_quick_recv"):
            receive = transport.sock.recv
            transport._quick_recv = lambda size: receive(max(size, _READ_SIZE))

    def _lanes_wanted(self) -> dict[str, tuple[str, Priority]]:
        """Queue and priority by the name of the lane; without what is put aside."""
        wanted = {lane_name(self.prefix, queue, p): (queue, p) for queue in sorted(self.queues) for p in PRIORITIES}
        for name in self._aside.keys() & wanted.keys():
            del wanted[name]
        return wanted

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """Put the lane aside if RabbitMQ refuses what is asked of it here, or does not answer."""
        try:
            yield
        except (InternalError, TimeoutError) as error:
            self._aside[name] = Aside()
            if not self._lanes_wanted():
                raise  # it is not for want of a leader
            log.error("RabbitMQ at %s: queue %s has no leader; the others go on: %s", self.address, name, error)
            raise _NoLeader from error

    def _consume(self, limit: int) -> None:
        """Consume what is in `queues`, and nothing else, with room for `limit` more."""
        assert self._channel is not None
        wanted = self._lanes_wanted()
        in_hand = len(self._channel.unsettled) - sum(map(len, self._ready.values()))
        grows = in_hand + limit > self._prefetch
        if not grows and wanted.keys() == self._tags.keys():
            return
        channel = self._channel.amqp
        for name in [name for name in self._tags if grows or name not in wanted]:
            tag = self._tags.pop(name)
            with self._blaming(name):
                channel.basic_cancel(tag)
            queue, priority = self._lanes.pop(tag)
            if name not in wanted:
                self._unfetch(queue, priority)
        self._prefetch = max(in_hand + limit, self._prefetch)
        for name, (queue, priority) in wanted.items():
            if name not in self._tags:
                with self._blaming(name):
                    self._consume_lane(name, queue, priority)

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

    def _unfetch(self, queue: str, priority: Priority) -> None:
        """Give back what came ahead of its fetch."""
        ready = self._ready[priority]
        self.release([delivery for delivery in ready if delivery.envelope.queue == queue])
        self._ready[priority] = deque(delivery for delivery in ready if delivery.envelope.queue != queue)

    def _drain(self) -> None:
        """Take in every frame that is there, without waiting."""
        transport = self._connection.transport
        while transport._read_buffer or readable(transport.sock):
            self._connection.blocking_read(self.timeout_seconds)

    def _on_message(self, message: Any) -> None:
        assert self._channel is not None
        queue, priority = self._lanes[message.delivery_info["consumer_tag"]]
        self._ready[priority].append(self._delivery(self._channel, message, queue, priority))

    def _delivery(self, channel: Channel, message: Any, queue: str, priority: Priority) -> Delivery:
        headers = message.headers or {}
        # How often it was handed out, which RabbitMQ 4.3 counts apart from how often that failed.
        before = headers.get("x-acquired-count", headers.get("x-delivery-count"))
        deliveries = before + 1 if isinstance(before, int) else 1
        if message.delivery_info["redelivered"]:
            deliveries = max(deliveries, 2)
        try:
            for name in [name for name in headers if name.startswith(_BROKERS_HEADERS)]:
                del headers[name]
        except TypeError:  # the name of a header is no text
            headers = plain(headers)
        number = message.delivery_info["delivery_tag"]
        channel.unsettled[number] = None
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        return Delivery(Envelope(queue, priority, headers, body), body, deliveries, (channel, number), self)

    def _take(self, limit: int) -> list[Delivery]:
        taken: list[Delivery] = []
        for ready in self._ready.values():
            while ready and len(taken) < limit:
                taken.append(ready.popleft())
        return taken

    def _settle(self, deliveries: Sequence[Delivery], how: Any) -> None:
        numbers: defaultdict[Channel, set[int]] = defaultdict(set)
        for delivery in deliveries:
            channel, number = delivery.tag
            numbers[channel].add(number)
        with self._lock:
            for channel, settled in numbers.items():
                if channel not in (self._channel, self._dead):
                    continue  # of a connection that was lost: these come again
                try:
                    how(channel, settled)
                except LOST as error:
                    if channel is self._dead:
                        self._disconnect_dead()
                    else:
                        self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._lost = error
        self._wakeup.set()

    def _beat(self) -> None:
        """Send heartbeats while nobody fetches, notice a silent server, and look at what was put aside."""
        while not self._closing.wait(FIRST_PAUSE if self._aside else HEARTBEAT_SECONDS / 4):
            self._look_aside()
            with self._lock:
                if self._connection is None or self._lost is not None:
                    continue
                try:
                    self._drain()
                    self._connection.heartbeat_tick()
                except Exception as error:  # whatever it is, fetch must hear of it
                    log.warning("RabbitMQ at %s: %s", self.address, error)
                    self._lose(error)
                if any(self._ready.values()):
                    self._wakeup.set()  # taken off the socket under a waiting fetch

    def _look_aside(self) -> None:
        for name, aside in list(self._aside.items()):
            if time.monotonic() < aside.look_at:
                continue
            if has_leader(self.url, name, self.timeout_seconds):
                log.warning("RabbitMQ at %s: queue %s has a leader again", self.address, name)
                with self._lock:
                    self._aside.pop(name, None)
                self._wakeup.set()
            else:
                aside.look_later()
