"""The position of a job in its queue, looked up without changing anything: for people who wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

from pydantic_core import to_json

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders import scheme
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas.jobs.kind import PRIORITIES, Priority

LOOKED_AT = 10_000
"""Entries read from each end of a lane. In the middle of a longer lane the position is not counted."""
_PAGE = 100
_HELD_LOOKED_AT = 2_000


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The broker's answer about a job.

    Attributes:
        there: whether its lane has it; None: unknown.
        ahead: waiting jobs that are served before it, those of higher lanes included; None: it does not wait, or that
            is unknown.
        exact: `ahead` is counted; else it is at most that.
        waiting: jobs that wait in all lanes of its queue.
        held_by: the worker that has fetched it.
        silent: how long that worker has not renewed its lease for it.
    """

    there: bool | None
    waiting: int
    ahead: int | None = None
    exact: bool = True
    held_by: str | None = None
    silent: timedelta | None = None


class QueuePositions(Protocol):
    """Finds jobs in the queues of a broker. Connects when first used."""

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        """The position of a job in this lane. Raises BrokerUnavailable."""
        ...

    def close(self) -> None: ...


def open_positions(url: str, *, prefix: str = "penstock", timeout_seconds: float = 5.0) -> QueuePositions:
    """The positions in the broker at a URL. Raises ConfigError if its scheme is unknown."""
    positions = RedisPositions if scheme(url) == "redis" else RabbitmqPositions
    return positions(url, prefix, timeout_seconds)


# How many entries a lane has, how many of them workers hold, and the last one that was handed out.
_LANE = """
local held, last = 0, '0-0'
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if not groups.err then
  for _, fields in ipairs(groups) do
    local is = {}
    for i = 1, #fields, 2 do is[fields[i]] = fields[i + 1] end
    if is.name == ARGV[1] then held, last = is.pending, is['last-delivered-id'] end
  end
end
return {redis.call('XLEN', KEYS[1]), held, last}
"""

# One page, so that Redis serves others in between, and without the bodies on the way: the index of the entry in it, or
# 0; how many it had; and where the next one begins.
_SCAN = """
local entries = redis.call(ARGV[2], KEYS[1], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
for i, entry in ipairs(entries) do
  for j = 1, #entry[2], 2 do
    if entry[2][j] == 'h' and string.find(entry[2][j + 1], ARGV[1], 1, true) then return {i, #entries, entry[1]} end
  end
end
return {0, #entries, #entries > 0 and entries[#entries][1] or ''}
"""

# The same among those that workers hold, with the worker and the time since its last sign of life.
_SCAN_HELD = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[2], ARGV[3], '+', ARGV[4])
if pending.err then return {0, ''} end
for _, one in ipairs(pending) do
  local entry = redis.call('XRANGE', KEYS[1], one[1], one[1])[1]
  if entry then
    for j = 1, #entry[2], 2 do
      if entry[2][j] == 'h' and string.find(entry[2][j + 1], ARGV[1], 1, true) then
        return {#pending, one[1], one[2], one[3]}
      end
    end
  end
end
return {#pending, #pending > 0 and pending[#pending][1] or ''}
"""


class RedisPositions:
    """`QueuePositions` over Redis."""

    def __init__(self, url: str, prefix: str, timeout_seconds: float) -> None:
        from penstock.producers.senders.redis.connections import RedisConnections

        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds)
        self._prefix = prefix

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        from penstock.producers.senders.redis.protocol import pack
        from penstock.producers.senders.redis.sender import GROUP, lane_keys

        number = PRIORITIES.index(cast(Priority, priority))
        keys = lane_keys(self._prefix, queue)
        needle = b'"id":' + to_json(job_id)  # as the sender has packed it
        lanes = self._connections.execute(*(pack("EVAL", _LANE, 1, key, GROUP) for key in keys))
        waits = [max(length - held, 0) for length, held, _ in lanes]
        waiting, higher = sum(waits), sum(waits[:number])
        last = lanes[number][2].decode()
        # Waiting entries first: an entry moves from there to a worker, not back.
        index, complete = self._scan(keys[number], needle, "XRANGE", f"({last}", "+")
        if index is None and not complete:
            behind, complete = self._scan(keys[number], needle, "XREVRANGE", "+", f"({last}")
            index = None if behind is None else max(waits[number] - 1 - behind, 0)
        if index is not None:
            return QueuePosition(True, waiting, higher + index)
        held, held_complete = self._scan_held(keys[number], needle)
        if held is not None:
            return QueuePosition(True, waiting, held_by=held[0], silent=held[1])
        if complete and held_complete:
            return QueuePosition(False, waiting)
        return QueuePosition(
            None, waiting, max(higher + waits[number] - 1, 0), exact=False
        )  # in the middle of a long lane

    def close(self) -> None:
        self._connections.close()

    def _scan(self, key: str, needle: bytes, command: str, first: str, last: str) -> tuple[int | None, bool]:
        """The entry's index from the first end, and whether all entries were read."""
        from penstock.producers.senders.redis.protocol import pack

        seen = 0
        while seen < LOOKED_AT:
            [(index, count, end)] = self._connections.execute(
                pack("EVAL", _SCAN, 1, key, needle, command, first, last, _PAGE)
            )
            if index:
                return seen + index - 1, False
            if count < _PAGE:
                return None, True
            seen += count
            first = f"({end.decode()}"
        return None, False

    def _scan_held(self, key: str, needle: bytes) -> tuple[tuple[str, timedelta] | None, bool]:
        from penstock.producers.senders.redis.protocol import pack
        from penstock.producers.senders.redis.sender import GROUP

        seen, first = 0, "-"
        while seen < _HELD_LOOKED_AT:
            [(count, end, *holder)] = self._connections.execute(
                pack("EVAL", _SCAN_HELD, 1, key, needle, GROUP, first, _PAGE)
            )
            if holder:
                return (holder[0].decode(), timedelta(milliseconds=holder[1])), False
            if count < _PAGE:
                return None, True
            seen += count
            first = f"({end.decode()}"
        return None, False


class RabbitmqPositions:
    """`QueuePositions` over RabbitMQ, which reports only the numbers of ready messages and of consumers."""

    def __init__(self, url: str, prefix: str, timeout_seconds: float) -> None:
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        number = PRIORITIES.index(cast(Priority, priority))
        ready, consumers = zip(*self._counts(queue), strict=True)
        waiting = sum(ready)
        if ready[number]:
            return QueuePosition(None, waiting, sum(ready[: number + 1]) - 1, exact=False)
        # Without a consumer that may hold it, an empty lane does not have it.
        return QueuePosition(None if consumers[number] else False, waiting)

    def close(self) -> None:
        pass

    def _counts(self, queue: str) -> Sequence[tuple[int, int]]:
        """Messages ready, and consumers, of each lane."""
        from penstock.producers.senders.rabbitmq.names import address, lane_name
        from penstock.producers.senders.rabbitmq.publisher import LOST, connect, count_lanes

        try:
            connection = connect(self._url, timeout_seconds=self._timeout_seconds)
            try:
                counts = count_lanes(connection, [lane_name(self._prefix, queue, priority) for priority in PRIORITIES])
            finally:
                connection.close()
        except LOST as error:
            raise BrokerUnavailable(f"RabbitMQ at {address(self._url)}: {error or type(error).__name__}") from error
        return [count or (0, 0) for count in counts.values()]


class MemoryPositions:
    """`QueuePositions` of a MemoryBroker, which does not know what its consumers hold."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        number = PRIORITIES.index(cast(Priority, priority))
        with self._broker.changed:
            self._broker.ping()
            lanes = [[envelope.id for envelope, _ in self._broker.lanes[queue, lane]] for lane in PRIORITIES]
        waiting, higher = sum(map(len, lanes)), sum(map(len, lanes[:number]))
        if job_id in lanes[number]:
            return QueuePosition(True, waiting, higher + lanes[number].index(job_id))
        return QueuePosition(None, waiting)

    def close(self) -> None:
        pass
