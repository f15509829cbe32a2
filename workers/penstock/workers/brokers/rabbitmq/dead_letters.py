"""The messages that RabbitMQ gave up on, off the queue of its dead-letter exchange."""

from __future__ import annotations

import logging
import time
from typing import Any

from penstock.producers.senders.rabbitmq.names import address, dead_name, lane_of
from penstock.producers.senders.rabbitmq.publisher import LOST, connect
from penstock.workers.brokers.consumer import Consumer, Delivery
from penstock.workers.brokers.rabbitmq.channel import Channel
from penstock.workers.brokers.rabbitmq.leaders import Suspension
from penstock.workers.brokers.rabbitmq.lenient_frames import plain, read_leniently

log = logging.getLogger(__name__)


class DeadLetterQueue:
    """Read on a connection of its own: an error there must not take the consumer's unsettled jobs with it.

    Attributes:
        channel: has the deliveries that are not settled; None: not connected.
    """

    def __init__(
        self, url: str, prefix: str, timeout_seconds: float, consumer: Consumer, max_message_bytes: int
    ) -> None:
        self.channel: Channel | None = None
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds
        self._consumer, self._max_message_bytes = consumer, max_message_bytes
        self._connection: Any = None
        self._suspension: Suspension | None = None

    def fetch(self, limit: int) -> list[Delivery]:
        """Up to `limit` messages; none while the queue cannot be read, which is logged when it begins."""
        if self._suspension is not None and time.monotonic() < self._suspension.check_at:
            return []
        deliveries: list[Delivery] = []
        try:
            if self.channel is None:
                self._connection = connect(self._url, timeout_seconds=self._timeout_seconds)
                read_leniently(self._connection, self._max_message_bytes)
                self.channel = Channel(self._connection)
            while len(deliveries) < limit and (message := self.channel.amqp.basic_get(dead_name(self._prefix))):
                queue, priority = lane_of(self._prefix, message.delivery_info["routing_key"])
                delivery = self.channel.delivery(message, queue, priority, self._consumer)
                delivery.envelope.headers = plain(delivery.envelope.headers)
                deliveries.append(delivery)
        except LOST as error:
            self.disconnect()
            if self._suspension is None:
                log.error("RabbitMQ at %s: %s cannot be read: %s", address(self._url), dead_name(self._prefix), error)
                self._suspension = Suspension()
            else:
                self._suspension.extend()
            return []
        self._suspension = None
        return deliveries

    def disconnect(self) -> None:
        """Leave; RabbitMQ keeps what was not settled."""
        if self._connection is not None:
            self._connection.collect()
        self._connection = self.channel = None
