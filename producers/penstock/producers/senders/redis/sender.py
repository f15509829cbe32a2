"""Envelopes onto Redis Streams.

A queue is three streams, one for each priority: `{prefix}:{{queue}}:{priority}`, the queue in braces so that its lanes
share a slot of a Redis Cluster. An entry holds `h`, the headers as JSON, and `b`, the body. Consumers delete what they
acknowledge, so the length of a stream is the number of jobs waiting or running.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Generic, TypeVar

from pydantic_core import to_json

from penstock.config.errors import BrokerRefused, QueueFull
from penstock.producers.senders.redis.async_connections import AsyncRedisConnections
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import Reply, explain, pack
from penstock.schemas.jobs.kind import PRIORITIES, Priority
from penstock.schemas.wire.codec import Envelope

GROUP = "workers"
"""The consumer group on every lane."""
BATCH = 500
"""Entries in one round trip."""

# The check and the additions in one step, so that many producers together do not pass the limit.
_ADD_LIMITED = b"""
local length = 0
for _, lane in ipairs(KEYS) do length = length + redis.call('XLEN', lane) end
if length + (#ARGV - 1) / 3 > tonumber(ARGV[1]) then return 0 end
for i = 2, #ARGV, 3 do redis.call('XADD', KEYS[tonumber(ARGV[i])], '*', 'h', ARGV[i + 1], 'b', ARGV[i + 2]) end
return 1
"""

Connections = TypeVar("Connections", RedisConnections, AsyncRedisConnections)

Exchange = Generator[tuple[bytes, int], list[Reply], None]
"""Yields packed commands with the number of their replies, and is sent the replies."""


def lane_key(prefix: str, queue: str, priority: Priority) -> str:
    return f"{prefix}:{{{queue}}}:{priority}"


def lane_keys(prefix: str, queue: str) -> list[str]:
    """The keys of a queue's lanes, the highest first."""
    return [lane_key(prefix, queue, priority) for priority in PRIORITIES]


def refusal(replies: Sequence[Reply]) -> Exception | None:
    """The first error among the replies."""
    return next((reply for reply in replies if isinstance(reply, Exception)), None)


class EntryPacker:
    """Packs envelopes as XADD commands; the part that is the same for a lane is packed once."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._heads: dict[tuple[str, str], bytes] = {}

    def __call__(self, envelope: Envelope) -> bytes:
        lane = (envelope.queue, envelope.priority)
        head = self._heads.get(lane)
        if head is None:
            whole = pack("XADD", lane_key(self.prefix, envelope.queue, envelope.priority), "*", "h", "", "b", "")
            head = self._heads[lane] = whole[: -len(b"$0\r\n\r\n$1\r\nb\r\n$0\r\n\r\n")]
        headers, body = to_json(envelope.headers), envelope.body
        return b"%b$%d\r\n%b\r\n$1\r\nb\r\n$%d\r\n%b\r\n" % (head, len(headers), headers, len(body), body)


class _Sender(Generic[Connections]):
    """Shared part of both senders: everything but input and output."""

    _connections_class: type[Connections]

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "penstock",
        timeout_seconds: float = 5.0,
        max_lengths: dict[str, int] | None = None,
    ) -> None:
        self._connections: Connections = self._connections_class(url, timeout_seconds=timeout_seconds)
        self._prefix, self._max_lengths = prefix, max_lengths or {}
        self._pack_entry = EntryPacker(prefix)

    def _exchange_all(self, envelopes: Sequence[Envelope]) -> Exchange:
        free = envelopes
        if self._max_lengths:
            limited: dict[str, list[Envelope]] = {}
            for envelope in envelopes:
                if envelope.queue in self._max_lengths:
                    limited.setdefault(envelope.queue, []).append(envelope)
            for queue, group in limited.items():  # first, so that a full queue is found before anything is sent
                yield from self._exchange_limited(queue, group)
            free = [envelope for envelope in envelopes if envelope.queue not in limited]
        for start in range(0, len(free), BATCH):
            batch = free[start : start + BATCH]
            self._check((yield b"".join(map(self._pack_entry, batch)), len(batch)))

    def _exchange_limited(self, queue: str, envelopes: Sequence[Envelope]) -> Exchange:
        limit = self._max_lengths[queue]
        arguments: list[bytes | str | int] = [len(PRIORITIES), *lane_keys(self._prefix, queue), limit]
        for envelope in envelopes:
            lane = PRIORITIES.index(envelope.priority) + 1
            arguments += (lane, to_json(envelope.headers), envelope.body)
        replies = yield pack("EVAL", _ADD_LIMITED, *arguments), 1
        self._check(replies)
        if not replies[0]:
            raise QueueFull(queue, limit)

    def _exchange_ping(self) -> Exchange:
        # A PING is answered also by a server that takes no jobs: one that is full, or a replica.
        self._check((yield pack("SET", f"{self._prefix}:ping", b"", "PX", 1000), 1))

    def _check(self, replies: Sequence[Reply]) -> None:
        """A refused command (out of memory, a read-only replica) is a broker that cannot be used now."""
        if error := refusal(replies):
            raise BrokerRefused(f"Redis at {self._connections.address} refused: {explain(error)}") from error


class RedisSender(_Sender[RedisConnections]):
    """`Sender` over Redis Streams."""

    _connections_class = RedisConnections

    def send(self, envelopes: Sequence[Envelope]) -> None:
        if len(envelopes) == 1 and envelopes[0].queue not in self._max_lengths:
            self._check(self._connections.call(self._pack_entry(envelopes[0])))
        else:
            self._run(self._exchange_all(envelopes))

    def ping(self) -> None:
        self._run(self._exchange_ping())

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {queue: sum(lanes.values()) for queue, lanes in self.lane_depths(queues).items()}

    def lane_depths(self, queues: Sequence[str]) -> dict[str, dict[str, int]]:
        commands = [
            pack(*command)
            for queue in queues
            for key in lane_keys(self._prefix, queue)
            for command in (("XLEN", key), ("XPENDING", key, GROUP))
        ]
        replies = self._connections.call(b"".join(commands), len(commands)) if commands else []
        waiting = []
        for length, pending in zip(replies[::2], replies[1::2], strict=True):
            self._check([length])
            running = 0 if isinstance(pending, Exception) else pending[0]  # no group yet: nothing was fetched
            waiting.append(max(0, length - running))
        lanes = len(PRIORITIES)
        each = [waiting[start : start + lanes] for start in range(0, len(waiting), lanes)]
        return {queue: dict(zip(PRIORITIES, of, strict=True)) for queue, of in zip(queues, each, strict=True)}

    def close(self) -> None:
        self._connections.close()

    def _run(self, exchange: Exchange) -> None:
        try:
            step = next(exchange)
            while True:
                step = exchange.send(self._connections.call(*step))
        except StopIteration:
            pass


class AsyncRedisSender(_Sender[AsyncRedisConnections]):
    """`AsyncSender` over Redis Streams; may be used in several event loops."""

    _connections_class = AsyncRedisConnections

    async def send(self, envelopes: Sequence[Envelope]) -> None:
        await self._run(self._exchange_all(envelopes))

    async def ping(self) -> None:
        await self._run(self._exchange_ping())

    async def close(self) -> None:
        await self._connections.close()

    async def _run(self, exchange: Exchange) -> None:
        try:
            step: Any = next(exchange)
            while True:
                step = exchange.send(await self._connections.call(*step))
        except StopIteration:
            pass
