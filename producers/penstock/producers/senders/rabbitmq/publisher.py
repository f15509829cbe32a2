"""Connection to RabbitMQ: declares queues and exchanges, and publishes with confirms. Imports py-amqp.

A queue is three quorum queues, one for each priority. What RabbitMQ gives up on (its delivery limit) goes through the
fanout exchange `{prefix}.dead` to the queue of that name, which the dispatcher empties into the ledger.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import amqp
from amqp.exceptions import AMQPError, NotFound, PreconditionFailed
from kombu.connection import Connection

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.producers.senders.hosts import look_up
from penstock.producers.senders.rabbitmq.names import address, dead_name, lane_name, tls_options
from penstock.schemas.jobs.kind import PRIORITIES, Priority
from penstock.schemas.wire.codec import Envelope

LOST = (AMQPError, OSError, AttributeError)
"""What py-amqp raises when a connection or channel is gone; AttributeError too, where it was closed in mid-call."""

DELIVERY_LIMIT = 20
BATCH = 500
"""Messages published before their confirms are awaited."""
REFUSED_PAUSE_SECONDS = 0.05


def connect(url: str, *, timeout_seconds: float, heartbeat_seconds: int = 0, name: str | None = None) -> Any:
    """A connected `amqp.Connection`; each read and write on it is bounded by the timeout.

    Arguments:
        name: of the connection, in RabbitMQ's list of them.

    Raises:
        OSError, AMQPError: within the timeout.
        ConfigError: a file that the URL names for TLS cannot be read.
    """
    plain, tls = tls_options(url)
    options = {} if name is None else {"client_properties": {"connection_name": name}}
    parameters: Any = Connection(  # type: ignore[no-untyped-call]
        plain, heartbeat=heartbeat_seconds, ssl=tls, transport_options=options
    )
    host, port = parameters.hostname or "localhost", parameters.port or 5672
    parameters.connect_timeout = timeout_seconds / look_up(host, port, timeout_seconds)
    connection = parameters.transport.establish_connection()
    connection.transport.sock.settimeout(timeout_seconds)
    return connection


def open_channel(connection: Any) -> Any:
    channel = connection.channel()
    channel.auto_decode = False  # bodies stay bytes
    return channel


def declare_dead(channel: Any, prefix: str) -> None:
    name = dead_name(prefix)
    channel.exchange_declare(name, "fanout", durable=True, auto_delete=False)
    # RabbitMQ 4 drops messages after 20 deliveries by default, and here they must not get lost.
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    channel.queue_bind(name, name)


def declare_lane(channel: Any, prefix: str, queue: str, priority: Priority) -> None:
    """Make the lane, or check that it is there as we want it. `declare_dead` comes first.

    `max_length` is not among the arguments: they cannot be changed later, and must be equal in every declaration.

    Raises:
        ConfigError: a queue of this name exists with other arguments.
    """
    name = lane_name(prefix, queue, priority)
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": dead_name(prefix),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # at-least-once asks for it
    }
    try:
        channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    except PreconditionFailed as error:
        raise ConfigError(
            f"RabbitMQ has a queue {name!r} with other arguments: {error}; delete it once it is empty, or set a prefix"
        ) from error


def count_lanes(connection: Any, lanes: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """Lane → messages that are ready, and consumers; None: RabbitMQ has no such queue. Makes none.

    A missing one costs a channel, and a line in the log of the server.

    Arguments:
        lanes: names of queues on RabbitMQ.
    """
    counts: dict[str, tuple[int, int] | None] = {}
    channel = open_channel(connection)
    for name in lanes:
        try:
            lane = channel.queue_declare(name, passive=True)
            counts[name] = (lane.message_count, lane.consumer_count)
        except NotFound:
            counts[name], channel = None, open_channel(connection)  # the declaration has closed the channel
    channel.close()
    return counts


class Publisher:
    """A connection with a channel in confirm mode. Not thread-safe.

    It asks for no heartbeats: a web backend has no thread to send them, and the server would cut an idle connection.

    Attributes:
        blocked: RabbitMQ has said that it reads nothing from publishers, for want of memory or disk space.
    """

    def __init__(self, url: str, prefix: str, timeout_seconds: float) -> None:
        self.address, self.prefix, self.timeout_seconds = address(url), prefix, timeout_seconds
        self.used_at = time.monotonic()
        self.connection = connect(url, timeout_seconds=timeout_seconds)
        self.connection.on_blocked, self.connection.on_unblocked = self._on_blocked, self._on_unblocked
        self.blocked = False
        self._declared: set[tuple[str, str]] = set()
        self._number = 0
        self._unconfirmed: dict[int, int] = {}  # publish number -> index in the batch
        self._returned: set[str] = set()  # ids of jobs whose lane has gone
        self._nacked: set[int] = set()
        self.channel = open_channel(self.connection)
        self.channel.confirm_select()
        self.channel.events["basic_ack"].add(self._on_ack)
        self.channel.events["basic_nack"].add(self._on_nack)
        self.channel.events["basic_return"].add(self._on_return)

    def publish(self, waiting: dict[int, Envelope]) -> None:
        """Publish all, in order, and take out of `waiting` what the broker has confirmed.

        Raises:
            BrokerUnavailable: the broker refused or did not confirm; LOST: the connection is gone.
        """
        for start in range(0, len(indices := list(waiting)), BATCH):
            self._publish_until_confirmed(waiting, indices[start : start + BATCH])
        self.used_at = time.monotonic()

    def _publish_until_confirmed(self, waiting: dict[int, Envelope], indices: list[int]) -> None:
        """Publish again what was refused, until the timeout: a quorum queue refuses while it has no leader, which it
        may not have yet when two have just declared it. What is returned had its queue deleted since it was declared.
        """
        deadline = time.monotonic() + self.timeout_seconds
        declared_again = False
        while True:
            refused, returned = self._publish_batch(waiting, indices, deadline)
            indices = [index for index in indices if index in waiting]
            if not indices:
                return
            if returned and declared_again:
                raise BrokerUnavailable(f"RabbitMQ at {self.address} has no queue for {returned} messages")
            if refused:
                if time.monotonic() + REFUSED_PAUSE_SECONDS >= deadline:
                    raise BrokerUnavailable(
                        f"RabbitMQ at {self.address} refused {refused} messages for {self.timeout_seconds:g} s"
                    )
                time.sleep(REFUSED_PAUSE_SECONDS)
            if returned:
                self._declared.clear()
                declared_again = True

    def _publish_batch(self, waiting: dict[int, Envelope], indices: list[int], deadline: float) -> tuple[int, int]:
        """Publish, and take out of `waiting` what was confirmed; how many were refused, and how many returned."""
        for index in indices:
            envelope = waiting[index]
            if (envelope.queue, envelope.priority) not in self._declared:
                self.declare(envelope.queue, envelope.priority)
        for index in indices:
            envelope = waiting[index]
            self._number += 1
            self._unconfirmed[self._number] = index
            message = amqp.Message(
                envelope.body,
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                correlation_id=envelope.id,
                application_headers=envelope.headers,
            )
            lane = lane_name(self.prefix, envelope.queue, envelope.priority)
            self.channel.basic_publish(message, exchange="", routing_key=lane, mandatory=True)
        self._await_confirms(deadline)
        returned = {index for index in indices if waiting[index].id in self._returned}
        refused = self._nacked - returned
        for index in indices:
            if index not in refused and index not in returned:
                del waiting[index]
        self._returned.clear()
        self._nacked.clear()
        return len(refused), len(returned)

    def ping(self) -> None:
        """Publish to no queue, twice: a RabbitMQ with an alarm takes one message of a connection, and reads no further.

        Raises:
            LOST: the connection is gone, or nothing was confirmed within the timeout.
        """
        deadline = time.monotonic() + self.timeout_seconds
        for _ in range(2):
            self._number += 1
            self._unconfirmed[self._number] = 0
            self.channel.basic_publish(amqp.Message(b""), exchange="", routing_key=f"{self.prefix}.ping")
            self._await_confirms(deadline)
        self._nacked.clear()
        self.used_at = time.monotonic()

    def declare(self, queue: str, priority: Priority) -> None:
        if not self._declared:
            declare_dead(self.channel, self.prefix)
        declare_lane(self.channel, self.prefix, queue, priority)
        self._declared.add((queue, priority))

    def depth(self, queue: str) -> int:
        """Messages ready in all lanes of a queue, which are declared if missing: jobs are about to be sent there."""
        for priority in PRIORITIES:
            if (queue, priority) not in self._declared:
                self.declare(queue, priority)
        names = [lane_name(self.prefix, queue, priority) for priority in PRIORITIES]
        return sum(self.channel.queue_declare(name, passive=True).message_count for name in names)

    def depths(self, queues: Iterable[str]) -> dict[str, dict[str, int]]:
        """Messages ready in each lane of each queue. Makes none that is missing."""
        lanes = {queue: [lane_name(self.prefix, queue, priority) for priority in PRIORITIES] for queue in queues}
        counts = count_lanes(self.connection, itertools.chain.from_iterable(lanes.values()))
        self.used_at = time.monotonic()
        ready = {name: (count or (0, 0))[0] for name, count in counts.items()}
        return {
            queue: {priority: ready[name] for priority, name in zip(PRIORITIES, names, strict=True)}
            for queue, names in lanes.items()
        }

    def close(self) -> None:
        """Close in an orderly way where that still works."""
        try:
            self.connection.close()
        except LOST:
            self.connection.collect()

    def abandon(self) -> None:
        """In a forked child: close our copy of the socket. A shutdown would end the parent's session."""
        if (transport := self.connection._transport) is not None and transport.sock is not None:
            transport.sock.close()
            transport.sock = None

    def _await_confirms(self, deadline: float) -> None:
        while self._unconfirmed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(self._unconfirmed)} messages not confirmed in {self.timeout_seconds:g} s")
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=left)

    def _on_blocked(self, reason: str) -> None:
        self.blocked = True

    def _on_unblocked(self) -> None:
        self.blocked = False

    def _on_ack(self, number: int, multiple: bool) -> None:
        if multiple:
            for earlier in list(itertools.takewhile(lambda other: other <= number, self._unconfirmed)):
                del self._unconfirmed[earlier]
        else:
            self._unconfirmed.pop(number, None)

    def _on_nack(self, number: int, multiple: bool) -> None:
        refused = [other for other in self._unconfirmed if other == number or (multiple and other < number)]
        self._nacked.update(self._unconfirmed.pop(other) for other in refused)

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.add(message.properties.get("correlation_id", ""))
