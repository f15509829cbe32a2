"""A channel with what is unsettled on it, and queues that cannot be consumed for now."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from amqp import spec
from amqp.exceptions import NotFound

from penstock.producers.senders.rabbitmq.publisher import LOST, connect, open_channel
from penstock.workers.brokers.rabbitmq.lenient_frames import read_leniently

FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Between two looks at a queue without a leader: RabbitMQ closes the connection for each."""


class Channel:
    """A channel, and the deliveries on it that are not settled."""

    def __init__(self, connection: Any) -> None:
        self.amqp = open_channel(connection)
        self.unsettled: OrderedDict[int, None] = OrderedDict()

    def ack(self, numbers: set[int]) -> None:
        """One frame for all up to the first that is still being worked on, and one for each past it."""
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


class Aside:
    """A queue that is left alone, and when to look at it again."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self.look_at = time.monotonic() + self._pause

    def look_later(self) -> None:
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self.look_at = time.monotonic() + self._pause


def has_leader(url: str, queue: str, timeout_seconds: float) -> bool:
    """Whether it can be consumed: asked for a message, which goes back, on a connection that ends with the answer."""
    try:
        connection = connect(url, timeout_seconds=timeout_seconds)
    except LOST:
        return False
    try:
        read_leniently(connection)
        channel = Channel(connection)
        if message := channel.amqp.basic_get(queue):
            channel.unsettled[message.delivery_tag] = None
            channel.release({message.delivery_tag})
        connection.close()
    except NotFound:
        return True  # and will be declared
    except LOST:
        return False
    else:
        return True
    finally:
        connection.collect()
