"""Messages of Celery's remote control, as anyone who can write to the broker may have made them.

None of them ends or blocks the worker: what cannot be read is dropped and counted, and what a command raises becomes
its answer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from queue import Empty
from typing import Any

from penstock.config.supervision import faults
from penstock.workers.brokers.rabbitmq.lenient_frames import read_leniently
from penstock.workers.engines.monitoring.event_messages import shorten

log = logging.getLogger("penstock.remote")

REFUSED, UNREADABLE = "remote control refused", "remote control unreadable"
"""Names of faults."""
MESSAGE_BYTES = 1024 * 1024
"""A larger message is not read, if the broker is RabbitMQ."""
_NAME = 255
_LARGEST_CLOCK = 2**53
_SHOWN = 200


def count(fault: str, text: str) -> None:
    """Count a fault; log the first of its kind, the tenth, the hundredth and so on: a flood must not fill the disk."""
    faults[fault] += 1
    if str(faults[fault]).rstrip("0") == "1":
        log.warning("%s, %d so far: %s", fault, faults[fault], shorten(text, _SHOWN))


def listen(node: Any, channel: Any, callback: Callable[[Any, Any], None]) -> Any:
    """Begin to consume a node's messages. Returns kombu's consumer.

    Arguments:
        callback: gets a message's body and the message; usually calls `answer`.
    """
    base = channel.Message

    class Uncompressed(base):  # type: ignore[misc, valid-type]
        """Kombu would expand some kilobytes to as many gigabytes."""

        def __init__(self, raw: Any, *arguments: Any, **options: Any) -> None:
            headers = raw.get("headers") if isinstance(raw, dict) else raw.headers
            if isinstance(headers, dict):
                headers.pop("compression", None)
            super().__init__(raw, *arguments, **options)

    channel.Message = Uncompressed
    node.channel = channel
    consumer = node.listen(channel, callback=callback)
    consumer.on_decode_error = lambda _message, error: count(UNREADABLE, f"{type(error).__name__}: {error}")
    return consumer


def answer(node: Any, body: Any, message: Any) -> None:
    """Run the command of a message and send its answer, if one is asked for.

    Raises:
        Exception: whatever the transport raises for the answer.
    """
    try:
        call = _Call(body)
    except ValueError as error:
        count(UNREADABLE, str(error))
        return
    clock = message.headers.get("clock") if isinstance(message.headers, dict) else None
    if type(clock) is int and 0 <= clock < _LARGEST_CLOCK:
        node.adjust_clock(clock)
    if not call.is_for(node.hostname):
        return
    command = node.handlers.get(call.method)
    if command is None:
        log.debug("remote control: no command %r", call.method)
        return
    try:
        reply = command(node.state, **call.arguments)
    except Exception as error:
        log.info("remote control: %s failed: %s", call.method, shorten(repr(error), _SHOWN))
        reply = {"error": shorten(f"{type(error).__name__}: {error}", _SHOWN)}
    if call.routing_key is not None:
        _publish(node, reply, call.routing_key, call.ticket)


def _publish(node: Any, reply: Any, routing_key: str, ticket: str | None) -> None:
    """Publish an answer on the channel that the command came on. Kombu's own way takes another connection in Celery,
    and connects again by itself, without the node's consumer."""
    from kombu.exceptions import InconsistencyError
    from kombu.messaging import Producer

    # To no other exchange than that of answers: the worker would publish there for the sender, or lose its channel.
    exchange = node.mailbox.reply_exchange
    producer: Any = Producer(node.channel, auto_declare=False)  # type: ignore[no-untyped-call]
    with contextlib.suppress(InconsistencyError):  # no one waits for the answer any more
        producer.publish(
            {node.hostname: reply},
            exchange=exchange,
            routing_key=routing_key,
            declare=[exchange],
            headers={"ticket": ticket, "clock": node.mailbox.clock.forward()},
            serializer=node.mailbox.serializer,
        )


class _Call:
    """A message's body.

    Attributes:
        routing_key: of the answer; None: none is wanted.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise ValueError(f"a body that is a {type(body).__name__}")
        self.method = _name(body, "method")
        self.arguments = _object(body, "arguments")
        destination = body.get("destination") or ()
        if not isinstance(destination, str | list | tuple):
            raise ValueError("destination is no list of names")
        self._destination = [destination] if isinstance(destination, str) else destination
        self._pattern = _name(body, "pattern") if body.get("pattern") else None
        if self._pattern is not None and body.get("matcher") not in (None, "glob"):
            raise ValueError("matcher is not 'glob'")  # a regular expression can take for ever
        self.routing_key = _name(_object(body, "reply_to"), "routing_key") if body.get("reply_to") else None
        self.ticket = _name(body, "ticket") if body.get("ticket") else None

    def is_for(self, hostname: str) -> bool:
        if self._destination:
            return hostname in self._destination
        return self._pattern is None or fnmatchcase(hostname, self._pattern)


def _name(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= _NAME:
        raise ValueError(f"{field} is no text of 1 to {_NAME} characters")
    return value


def _object(body: dict[str, Any], field: str) -> dict[str, Any]:
    value = body.get(field) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{field} is no object")
    return value


def read_no_garbage(connection: Any) -> None:
    """Make a kombu connection, connected to RabbitMQ, deliver messages that it cannot read as unreadable ones."""
    if connection.transport.driver_type == "amqp":
        read_leniently(connection.connection, MESSAGE_BYTES)


def drop_garbage() -> None:
    """Make kombu's channels to Redis drop what is published there and no message: it would end Celery's worker."""
    from kombu.transport import redis

    channel: Any = redis.Channel
    receive = channel._receive_one
    if receive.__module__ == __name__:
        return

    def receive_one(self: Any, client: Any) -> Any:
        try:
            return receive(self, client)
        except (*self.connection.connection_errors, *self.connection.channel_errors):
            raise
        except (Empty, Exception) as error:
            count(UNREADABLE, f"{type(error).__name__}: {error}")
            return None

    channel._receive_one = receive_one
