"""Moves the messages of unmodified Celery and Dramatiq clients: lists on Redis, classic queues on RabbitMQ.

The default priority of such a client is 0, which is the most urgent on Redis and the least urgent on RabbitMQ. So a
message with another priority goes to the low lane on Redis, and to the high lane on RabbitMQ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from amqp.exceptions import ChannelError
from pydantic_core import to_json

from penstock.config.errors import BrokerUnavailable, UndecodableMessage
from penstock.producers.senders import scheme
from penstock.producers.senders.rabbitmq.names import address
from penstock.producers.senders.rabbitmq.publisher import LOST, connect, open_channel
from penstock.producers.senders.rabbitmq.sender import RabbitmqSender
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack
from penstock.producers.senders.redis.sender import lane_key
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import KEPT_BYTES, MESSAGE_BYTES, Envelope
from penstock.workers.brokers.rabbitmq.lenient_frames import plain, read_leniently
from penstock.workers.brokers.stock.messages import read_dramatiq, read_kombu, with_properties

Route = Callable[[Envelope, bytes], Envelope | None]
"""Gets a message (its queue is the client's; no headers where it cannot be read) and its raw bytes. Returns the
envelope to send on, or None when it has dealt with the message itself. It may get a message again after a crash."""

_PRIORITY_STEPS = (0, 3, 6, 9)
_DELAYED = ".DQ"
"""The suffix of Dramatiq's queues of delayed messages."""
_BATCH = 200
_LOOK_AGAIN_SECONDS = 10.0
"""Seconds between two looks for a queue missing on RabbitMQ: each costs a channel and a line in the server's log."""

# The removal decides: if several dispatchers read the same message, one moves it. LPOS keeps the others from searching
# a long list for a message that is gone.
_MOVE = """
if not redis.call('LPOS', KEYS[1], ARGV[1], 'RANK', -1, 'MAXLEN', 1000) then return 0 end
redis.call('LREM', KEYS[1], -1, ARGV[1])
if KEYS[2] then redis.call('XADD', KEYS[2], '*', 'h', ARGV[2], 'b', ARGV[3]) end
return 1
"""
# Dramatiq's list holds ids, the oldest first, and its messages are in a hash. What a Dramatiq worker has fetched is in
# the hash only, so the removal from the list decides here too.
_MOVE_DRAMATIQ = """
if not redis.call('LPOS', KEYS[1], ARGV[1], 'MAXLEN', 1000) then return 0 end
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if KEYS[3] then redis.call('XADD', KEYS[3], '*', 'h', ARGV[2], 'b', ARGV[3]) end
return 1
"""

# Of a message over the limit Redis sends its size, its hash and its beginning. KEYS: a list, or a hash of messages.
# ARGV: the limit, the bytes to keep; and how many of the list, or the ids in the hash.
_CUT = """
local function cut(raws)
  for i, raw in ipairs(raws) do
    if raw and #raw > tonumber(ARGV[1]) then
      raws[i] = {#raw, redis.sha1hex(raw), string.sub(raw, 1, tonumber(ARGV[2]))}
    end
  end
  return raws
end
"""
_READ = _CUT + "return cut(redis.call('LRANGE', KEYS[1], -ARGV[3], -1))"
_READ_DRAMATIQ = _CUT + "return cut(redis.call('HMGET', KEYS[1], unpack(ARGV, 3)))"
_REMOVE_LARGE = """
local raws = redis.call('LRANGE', KEYS[1], -1000, -1)
for i = #raws, 1, -1 do
  if #raws[i] == tonumber(ARGV[1]) and redis.sha1hex(raws[i]) == ARGV[2] then
    return redis.call('LREM', KEYS[1], -1, raws[i])
  end
end
return 0
"""


class StockIntake(Protocol):
    """Moves messages of unmodified clients into our queues."""

    def take(self, limit: int, route: Route) -> int:
        """Move up to `limit` messages and return how many were moved. A crash loses none, but may route one twice.

        Raises:
            BrokerUnavailable: the other messages stay where they are; likewise after an error of `route`.
        """
        ...

    def close(self) -> None: ...


def open_stock_intake(
    url: str,
    queues: Iterable[str],
    prefix: str = "penstock",
    *,
    timeout_seconds: float = 5.0,
    max_message_bytes: int = MESSAGE_BYTES,
) -> StockIntake:
    """The intake for a broker URL; it connects when first used."""
    intake = RedisStockIntake if scheme(url) == "redis" else RabbitmqStockIntake
    return intake(url, queues, prefix, timeout_seconds=timeout_seconds, max_message_bytes=max_message_bytes)


@dataclass(frozen=True)
class _List:
    """A list of an unmodified client on Redis.

    Attributes:
        queue: the client's name for it.
        messages: the key of the hash where Dramatiq keeps the messages of the ids in the list; None: it is kombu's.
    """

    queue: str
    key: str
    messages: str | None = None


class RedisStockIntake:
    """Lists of kombu's Redis transport, one for each of its four priorities, the oldest message at the tail; and those
    of Dramatiq's Redis broker, under its usual namespace, one for what is due and one for what is delayed."""

    def __init__(
        self, url: str, queues: Iterable[str], prefix: str, *, timeout_seconds: float, max_message_bytes: int
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self.prefix = prefix
        self._lists = [source for queue in queues for source in _lists(queue)]
        self._count_filled = pack("EXISTS", *(source.key for source in self._lists))
        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds)

    def take(self, limit: int, route: Route) -> int:
        moved = 0
        [filled] = self._connections.execute(self._count_filled) if self._lists else [0]
        if not filled:  # mostly: an empty list is none
            return 0
        lengths = self._connections.execute(*(pack("LLEN", source.key) for source in self._lists))
        for source, length in zip(self._lists, lengths, strict=True):
            if length:
                moved += self._take(source, limit - moved, route)
        return moved

    def close(self) -> None:
        self._connections.close()

    def _take(self, source: _List, limit: int, route: Route) -> int:
        total = 0
        while (count := min(_BATCH, limit - total)) > 0:
            entries = self._read_dramatiq(source, count) if source.messages else self._read_kombu(source, count)
            moves = [self._move(source, entry, raw, envelope, route) for entry, raw, envelope in entries]
            moved = sum(self._connections.execute(*moves))
            total += moved
            if moved < count:  # the list is empty, or another dispatcher moves the same entries
                break
        return total

    def _read_kombu(self, source: _List, count: int) -> Iterator[tuple[Any, bytes | None, Envelope]]:
        limits = self._max_message_bytes, KEPT_BYTES
        [messages] = self._connections.execute(pack("EVAL", _READ, 1, source.key, *limits, count))
        for raw in reversed(messages):
            if isinstance(raw, list):
                yield raw, raw[2], Envelope(source.queue, "normal", {}, raw[2], raw[0])
            else:
                yield raw, raw, read_kombu(source.queue, raw)

    def _read_dramatiq(self, source: _List, count: int) -> Iterator[tuple[Any, bytes | None, Envelope]]:
        [ids] = self._connections.execute(pack("LRANGE", source.key, 0, count - 1))
        read = pack("EVAL", _READ_DRAMATIQ, 1, source.messages or "", self._max_message_bytes, KEPT_BYTES, *ids)
        [messages] = self._connections.execute(read) if ids else [[]]
        for entry, raw in zip(ids, messages, strict=True):
            if isinstance(raw, list):
                yield entry, raw[2], Envelope(source.queue, "normal", {}, raw[2], raw[0])
            else:
                yield entry, raw, _read_dramatiq(source.queue, raw or b"")

    def _move(self, source: _List, entry: Any, raw: bytes | None, envelope: Envelope, route: Route) -> bytes:
        """The command that moves an entry.

        Arguments:
            entry: the bytes in the list; or the size, hash and beginning of a message over the limit.
            raw: None for an id in Dramatiq's list without a message, which is only removed.
        """
        routed = None if raw is None else route(envelope, raw)
        if isinstance(entry, list):
            return pack("EVAL", _REMOVE_LARGE, 1, source.key, entry[0], entry[1])
        script, keys = (
            (_MOVE, [source.key]) if source.messages is None else (_MOVE_DRAMATIQ, [source.key, source.messages])
        )
        if routed is None:
            return pack("EVAL", script, len(keys), *keys, entry)
        keys.append(lane_key(self.prefix, routed.queue, routed.priority))
        return pack("EVAL", script, len(keys), *keys, entry, to_json(routed.headers), routed.body)


class RabbitmqStockIntake:
    """Queues that unmodified clients declared; a queue that is missing, or has its own consumers, is left alone. Each
    comes with Dramatiq's queue for delayed messages."""

    def __init__(
        self, url: str, queues: Iterable[str], prefix: str, *, timeout_seconds: float, max_message_bytes: int
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self.url, self.queues, self.timeout_seconds = url, tuple(queues), timeout_seconds
        self._sender = RabbitmqSender(url, prefix=prefix, timeout_seconds=timeout_seconds)
        self._connection: Any = None
        self._channel: Any = None
        self._look_at: dict[str, float] = {}  # when to look for missing queues again

    def take(self, limit: int, route: Route) -> int:
        moved = 0
        try:
            if self._connection is None:
                self._connection = connect(self.url, timeout_seconds=self.timeout_seconds)
                read_leniently(self._connection, self._max_message_bytes)
            for queue in self.queues:
                for name in (queue, queue + _DELAYED):
                    answer = self._look(name)
                    if answer is None:
                        break
                    if not answer.consumer_count and answer.message_count:
                        moved += self._take(queue, name, limit - moved, route)
        except LOST as error:
            self._disconnect()
            raise BrokerUnavailable(f"RabbitMQ at {address(self.url)}: {error or type(error).__name__}") from error
        except BaseException:
            self._disconnect()  # and RabbitMQ takes back what was not acknowledged
            raise
        return moved

    def close(self) -> None:
        self._disconnect()
        self._sender.close()

    def _look(self, name: str) -> Any:
        """RabbitMQ's answer about a queue, with its counts; None: the queue is missing."""
        if time.monotonic() < self._look_at.get(name, 0.0):
            return None
        if self._channel is None:
            self._channel = open_channel(self._connection)
        try:
            return self._channel.queue_declare(name, passive=True)
        except ChannelError:  # which has closed the channel
            self._channel = None
            self._look_at[name] = time.monotonic() + _LOOK_AGAIN_SECONDS
            return None

    def _take(self, queue: str, name: str, limit: int, route: Route) -> int:
        channel = self._channel
        moved, message = 0, None
        while moved < limit:
            outgoing: list[Envelope] = []
            last = 0
            while len(outgoing) < _BATCH and moved < limit and (message := channel.basic_get(name)):
                last = message.delivery_info["delivery_tag"]
                priority: Priority = "high" if message.properties.get("priority") else "normal"
                body = bytes(message.body)
                headers = with_properties(plain(message.headers or {}), plain(message.properties))
                envelope = Envelope(queue, priority, headers, body, getattr(message, "full_size", None))
                if envelope.full_size is None and "task" not in headers:
                    with suppress(UndecodableMessage):
                        envelope = read_dramatiq(queue, body, priority)
                if routed := route(envelope, body):
                    outgoing.append(routed)
                moved += 1
            if outgoing:
                self._sender.send(outgoing)  # confirmed before the old one goes
            if last:
                channel.basic_ack(last, multiple=True)
            if message is None:
                break
        return moved

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.collect()
            self._connection = self._channel = None


def _lists(queue: str) -> Iterator[_List]:
    for step in _PRIORITY_STEPS:
        yield _List(queue, f"{queue}\x06\x16{step}" if step else queue)
    for key in (f"dramatiq:{queue}", f"dramatiq:{queue}{_DELAYED}"):
        yield _List(queue, key, f"{key}.msgs")


def _read_dramatiq(queue: str, raw: bytes) -> Envelope:
    """The envelope of Dramatiq's bytes, without headers if they are not a message."""
    try:
        return read_dramatiq(queue, raw)
    except UndecodableMessage:
        return Envelope(queue, "normal", {}, raw)
