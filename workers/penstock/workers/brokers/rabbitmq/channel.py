"""A channel with its unsettled deliveries."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from amqp import spec

from penstock.producers.senders.rabbitmq.publisher import open_channel
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers.consumer import Consumer, Delivery
from penstock.workers.brokers.rabbitmq.lenient_frames import plain

_READ_SIZE = 16_384
_BROKERS_HEADERS = ("x-delivery-count", "x-acquired-count", "x-death", "x-first-death-", "x-last-death-")


class Channel:
    """A channel, and the deliveries on it that are not settled."""

    def __init__(self, connection: Any) -> None:
        self.amqp = open_channel(connection)
        self.unsettled: OrderedDict[int, None] = OrderedDict()

    def delivery(self, message: Any, queue: str, priority: Priority, consumer: Consumer) -> Delivery:
        """An AMQP message of a lane as a delivery, unsettled from now on."""
        headers = message.headers or {}
        # How often it was handed out, which RabbitMQ 4.3 counts apart from how often that failed.
        before = headers.get("x-acquired-count", headers.get("x-delivery-count"))
        deliveries = before + 1 if isinstance(before, int) else 1
        if message.delivery_info["redelivered"]:
            deliveries = max(deliveries, 2)
        try:
            for name in [name for name in headers if name.startswith(_BROKERS_HEADERS)]:
                del headers[name]
        except TypeError:  # the name of a header is not text
            headers = plain(headers)
        number = message.delivery_info["delivery_tag"]
        self.unsettled[number] = None
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        envelope = Envelope(queue, priority, headers, body, getattr(message, "full_size", None))
        return Delivery(envelope, body, deliveries, (self, number), consumer)

    def ack(self, numbers: set[int]) -> None:
        """Acknowledge with one frame all up to the first unfinished message, and each past it with its own."""
        numbers = numbers & self.unsettled.keys()
        upto = 0
        while self.unsettled and (first := next(iter(self.unsettled))) in numbers:
            del self.unsettled[first]
            numbers.discard(first)
            upto = first
        if upto:
            self.amqp.basic_ack(upto, multiple=True)
        for number in sorted(numbers):
            del self.unsettled[number]
            self.amqp.basic_ack(number)

    def release(self, numbers: set[int]) -> None:
        for number in sorted(numbers & self.unsettled.keys()):
            del self.unsettled[number]
            # Not a reject: from RabbitMQ 4.3 on that alone counts towards the delivery limit.
            self.amqp.send_method(spec.Basic.Nack, "Lbb", (number, False, True))


def read_in_blocks(connection: Any) -> None:
    """Make a connection read much at a time: py-amqp reads a frame in three small pieces, six system calls each time.

    Given more than it asked for, py-amqp keeps the rest, as it does over TLS.
    """
    transport = connection.transport
    if hasattr(transport, "_quick_recv"):
        receive = transport.sock.recv
        transport._quick_recv = lambda size: receive(max(size, _READ_SIZE))
