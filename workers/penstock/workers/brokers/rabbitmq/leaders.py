"""Lanes whose queue has no leader: they are suspended, so that the others go on, and checked until one is elected."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from amqp.exceptions import NotFound

from penstock.producers.senders.rabbitmq.names import address
from penstock.producers.senders.rabbitmq.publisher import LOST, connect
from penstock.workers.brokers.rabbitmq.channel import Channel
from penstock.workers.brokers.rabbitmq.lenient_frames import read_leniently

log = logging.getLogger(__name__)

FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two checks of a queue without a leader: RabbitMQ closes the connection for each."""


class NoLeader(Exception):
    """A lane's queue has no leader now, and RabbitMQ closed the connection for asking."""


class Suspension:
    """The time at which a queue is to be checked again; the pauses grow."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self.check_at = time.monotonic() + self._pause

    def extend(self) -> None:
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self.check_at = time.monotonic() + self._pause


class SuspendedLanes:
    """The lanes without a leader, by name."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._url, self._timeout_seconds = url, timeout_seconds
        self._lanes: dict[str, Suspension] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __contains__(self, name: str) -> bool:
        return name in self._lanes

    def add(self, name: str) -> None:
        self._lanes[name] = Suspension()

    def clear(self) -> None:
        self._lanes.clear()

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._lanes.pop(name, None)

    def check(self) -> list[str]:
        """The lanes that have a leader again, of those whose time to be checked has come."""
        led: list[str] = []
        for name, suspension in list(self._lanes.items()):
            if time.monotonic() < suspension.check_at:
                continue
            if _has_leader(self._url, name, self._timeout_seconds):
                log.warning("RabbitMQ at %s: queue %s has a leader again", address(self._url), name)
                led.append(name)
            else:
                suspension.extend()
        return led


def _has_leader(url: str, queue: str, timeout_seconds: float) -> bool:
    """Whether a queue can be consumed: it is asked for a message, which goes back, on a connection of its own."""
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
