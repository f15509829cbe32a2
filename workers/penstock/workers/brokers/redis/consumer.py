"""Deliveries off Redis Streams.

A fetched entry is pending under the consumer's name in the lane's group. A thread of the consumer keeps resetting the
idle time of everything it holds, and where that thread gets no turn, a second process does (the lease keeper). An entry
whose idle time reaches the lease belongs to a consumer that fell silent, and any other takes it over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import Reply, pack
from penstock.producers.senders.redis.sender import GROUP, lane_key
from penstock.schemas.jobs.kind import PRIORITIES, Priority
from penstock.schemas.wire.codec import KEPT_BYTES, MESSAGE_BYTES, Envelope
from penstock.workers.brokers.consumer import Consumer, Delivery
from penstock.workers.brokers.redis.lease_keeper import KeeperProcess, LeaseKeeper, is_possible
from penstock.workers.brokers.redis.leases import Leases
from penstock.workers.brokers.turns import Lane, Turns
from penstock.workers.brokers.wakeup import Wakeup

log = logging.getLogger(__name__)

LONGEST_BLOCK_SECONDS = 5.0
"""A stream deleted under a blocked read is noticed no later than this, on servers that do not end the read for it."""
_FORGET_CONSUMERS_MS = 3_600_000

# In one step: a consumer seen idle may fetch before it is deleted, and deleting it would delete what it fetched.
_DELETE_CONSUMERS = """
local found = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if found.err then return 0 end
for _, fields in ipairs(found) do
  local is = {}
  for i = 1, #fields, 2 do is[fields[i]] = fields[i + 1] end
  if is.pending == 0 and (is.name == ARGV[2] or is.idle > tonumber(ARGV[3])) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], is.name)
  end
end
return 1
"""

# A Redis at its maxmemory refuses XGROUP CREATE, even of a group that exists. Not after a write of the same script, and
# this one needs no memory: workers can begin on a full Redis, and make room.
_DECLARE = """
redis.call('XDEL', KEYS[1], '0-0')
return redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
"""

# Of an entry over the limit the server sends the beginning of its first fields, and the size of all of them as a third
# part of the entry: a worker that was sent a few of such entries whole would run out of memory before it can look.
_CUT = """
local function cut(entries, most)
  for _, entry in ipairs(entries) do
    if entry and entry[2] then
      local size, kept = 0, {}
      for _, field in ipairs(entry[2]) do size = size + #field end
      if size > most then
        for i = 1, math.min(4, #entry[2]) do kept[i] = string.sub(entry[2][i], 1, KEPT_BYTES) end
        entry[2], entry[3] = kept, size
      end
    end
  end
  return entries
end
""".replace("KEPT_BYTES", str(KEPT_BYTES))

_CLAIM = _CUT + "return cut(redis.call('XCLAIM', KEYS[1], unpack(ARGV, 2)), tonumber(ARGV[1]))"

# Lane after lane until the limit is reached: XREADGROUP over several streams takes up to its COUNT from each, so a
# worker with one free slot would get a low job along with the high one and run it before the next high one.
# KEYS: the lanes of each priority in their turns. ARGV: group, consumer, limit, lanes of a priority, how many entries
# are kept for the lowest, the limit of an entry's size, and the weight of each lane. `Turns.take` does the same in
# memory.
_READ_IN_TURN = (
    _CUT
    + """
local found, empty, lanes = {}, {}, tonumber(ARGV[4])
local function read(i, count)
  local streams = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count, 'STREAMS', KEYS[i], '>')
  local got = streams and #streams[1][2] or 0
  if streams then
    cut(streams[1][2], tonumber(ARGV[6]))
    found[#found + 1] = streams[1]
  end
  empty[i] = got < count
  return got
end
local function share_out(first, most)
  local left, last, again = most, first + lanes - 1, true
  while left > 0 and again do
    local share, weights = left, 0
    again = false
    for i = first, last do if not empty[i] then weights = weights + ARGV[6 + i] end end
    for i = first, last do
      local count = math.min(left, math.ceil(share * ARGV[6 + i] / weights))
      if count > 0 and not empty[i] then
        left = left - read(i, count)
        again = again or not empty[i]
      end
    end
  end
  return most - left
end
local left = tonumber(ARGV[3])
left = left - share_out(#KEYS - lanes + 1, tonumber(ARGV[5]))
for first = 1, #KEYS, lanes do left = left - share_out(first, left) end
return found
"""
)


# The lanes that have entries, waiting or in someone's hands, by their numbers; mostly none, and then no other command
# is needed to see that nothing is pending.
_FILLED = """
local numbers, filled = {}, {}
for i, key in ipairs(KEYS) do numbers[key] = i end
for _, stream in ipairs(redis.call('XREAD', 'COUNT', 1, 'STREAMS', unpack(ARGV)) or {}) do
  filled[#filled + 1] = numbers[stream[1]]
end
return filled
"""


class RedisConsumer(Consumer):
    """`Consumer` over Redis Streams.

    An entry counts as delivered once when fetched first, and once more with each take-over. An acknowledgement counts
    even after another consumer took the entry over: the job is done, and its second run will find that in the ledger.
    """

    counts_releases = False

    def __init__(
        self,
        url: str,
        queues: Iterable[str],
        *,
        name: str,
        prefix: str = "penstock",
        lease_seconds: float = 15.0,
        timeout_seconds: float = 5.0,
        lease_keeper: bool | KeeperProcess = False,
        weights: Mapping[str, int] | None = None,
        max_message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self.queues = set(queues)
        self.name, self.prefix, self.lease_seconds = name, prefix, lease_seconds
        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds, shared=True, name=name)
        self.connections = self._connections
        keeper: LeaseKeeper | None = None
        if lease_keeper and is_possible():
            shared = lease_keeper if isinstance(lease_keeper, KeeperProcess) else None
            keeper = LeaseKeeper(
                url, name, lease_seconds=lease_seconds, timeout_seconds=timeout_seconds, process=shared
            )
        self._leases = Leases(self._connections, name, lease_seconds, keeper)
        self._max_message_bytes = max_message_bytes
        self._fetching = threading.Lock()
        self._wakeup = Wakeup()
        self._connection: Any = None
        self._client_id = 0
        self.turns = Turns(weights)
        self._lanes: dict[bytes, Lane] = {}
        self._keys: dict[Lane, bytes] = {}
        self._lanes_of: frozenset[str] = frozenset()
        self._take_over_at = 0.0
        self._is_empty = False
        """Whether a wait for entries was in vain just now, so that the next begins without a look."""

    def open(self) -> None:
        with self._fetching:
            self._disconnect()
            self._connection = self._connections.connect()
            self._leases.follow(self._connections.server_url)
            self._client_id = self._connections.call_on(self._connection, pack("CLIENT", "ID"))[0]
            self._declare()
            self._delete_consumers(idle_ms=_FORGET_CONSUMERS_MS)
        self._leases.start()

    def fetch(self, limit: int, timeout_seconds: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout_seconds
        with self._fetching:
            if self._connection is None:
                raise BrokerUnavailable(f"Redis at {self._connections.address}: not connected; open the consumer")
            while True:
                if self._lanes_of != self.served:
                    self._declare()
                now = time.monotonic()
                if limit < 1:  # for Redis a COUNT of 0 is none
                    self._wakeup.wait([], deadline - now)
                    return []
                if now >= self._take_over_at and (deliveries := self._take_over(limit)):
                    return deliveries
                slice_ends = min(deadline, self._take_over_at, now + LONGEST_BLOCK_SECONDS)
                deliveries, woken = self._read(limit, slice_ends - now)
                if deliveries or woken or time.monotonic() >= deadline:
                    return deliveries

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._leases.settle([delivery.tag for delivery in deliveries])

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._leases.release([delivery.tag for delivery in deliveries])

    def drain_dead(self, limit: int) -> list[Delivery]:
        """Redis gives up on nothing by itself."""
        return []

    def wake(self) -> None:
        self._wakeup.set()

    def close(self) -> None:
        """Settle what is acknowledged and leave. Unsettled deliveries come to others when their lease ends."""
        self._wakeup.set()
        with self._fetching:
            self._leases.stop()
            try:
                self._delete_consumers(name=self.name)
            except BrokerUnavailable as error:
                log.warning("consumer %s stays registered: %s", self.name, error)
            self._disconnect()
        self._connections.close()
        self._wakeup.close()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _declare(self) -> None:
        self.step_at = time.monotonic()
        queues = self.served
        # The higher lanes of all queues first: XREADGROUP answers in the order of the keys.
        keys: dict[Lane, bytes] = {
            (queue, priority): lane_key(self.prefix, queue, priority).encode()
            for priority in PRIORITIES
            for queue in sorted(queues)
        }
        commands = [pack("EVAL", _DECLARE, 1, key, GROUP) for key in keys.values()]
        replies = self._connections.call(b"".join(commands), len(commands)) if commands else []
        for reply in replies:
            if isinstance(reply, Exception) and "BUSYGROUP" not in str(reply):
                self._connections.fail(reply)
        self._keys, self._lanes_of, self._is_empty = keys, queues, False
        self._lanes = {key: lane for lane, key in keys.items()}

    def _delete_consumers(self, name: str = "", idle_ms: int = 2**52) -> None:
        commands = [pack("EVAL", _DELETE_CONSUMERS, 1, key, GROUP, name, idle_ms) for key in self._lanes]
        if commands:
            self._connections.call(b"".join(commands), len(commands))

    def _read(self, limit: int, wait_seconds: float) -> tuple[list[Delivery], bool]:
        """New entries, and whether `wake` ended the wait for them."""
        if not self._lanes:
            return [], self._wakeup.wait([], wait_seconds)[1]
        block = ("BLOCK", int(wait_seconds * 1000)) if wait_seconds >= 0.001 else ()
        if not (self._is_empty and block) and (deliveries := self._read_in_turn(limit)):
            return deliveries, False
        woken = False

        def wait_for_answer() -> None:
            nonlocal woken
            # The socket's own timeout is shorter than a long block; this wait ends when the answer is there.
            answered, woken = self._wakeup.wait([self._connection._sock], wait_seconds + 1)
            while woken and not answered:
                # Redis may see this before the read it is to end, so again until there is an answer.
                [ended] = self._connections.call(pack("CLIENT", "UNBLOCK", self._client_id))
                longest = (
                    wait_seconds if isinstance(ended, Exception) else 0.02
                )  # not allowed to unblock: wait for the end
                answered = self._wakeup.wait([self._connection._sock], longest)[0] or isinstance(ended, Exception)

        streams = (*self._lanes, *(b">" for _ in self._lanes))
        # During the wait entries may come from several lanes at once. One from each, since they come whole, however
        # large: the next read gets the others.
        command = pack("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", 1, *block, "STREAMS", *streams)
        deliveries = self._entries(command, before_reading=wait_for_answer)
        self._is_empty = not deliveries and not woken
        return deliveries, woken

    def _read_in_turn(self, limit: int) -> list[Delivery]:
        order, kept = self.turns.order(self._lanes_of), min(self.turns.kept(limit), limit)
        lanes = [lane for of_priority in order.values() for lane in of_priority]
        keys, weights = map(self._keys.__getitem__, lanes), map(self.turns.weight, lanes)
        most = self._max_message_bytes
        arguments: tuple[str | int, ...] = (GROUP, self.name, limit, len(self._lanes_of), kept, most, *weights)
        return self._entries(pack("EVAL", _READ_IN_TURN, len(lanes), *keys, *arguments), kept)

    def _entries(
        self, command: bytes, kept: int = 0, before_reading: Callable[[], None] | None = None
    ) -> list[Delivery]:
        [reply] = self._ask(command, 1, before_reading=before_reading)
        if isinstance(reply, Exception):
            # The stream or its group is gone: Redis was flushed, or lost its data. A read that was blocked then
            # ends with "UNBLOCKED the stream key no longer exists".
            if "NOGROUP" not in str(reply) and not str(reply).startswith("UNBLOCKED"):
                self._connections.fail(reply)
            self._declare()
            return []
        counts = Counter[Lane]()
        by_priority: dict[Priority, list[Delivery]] = {priority: [] for priority in PRIORITIES}
        for key, entries in reply or ():
            lane = self._lanes[key]
            counts[lane] += len(entries)
            by_priority[lane[1]] += self._deliveries(key, entries, {})
        self.turns.took(counts, kept)
        return [delivery for deliveries in by_priority.values() for delivery in deliveries]

    def _take_over(self, limit: int) -> list[Delivery]:
        """Entries of silent consumers, up to the limit; another look is due at once when it was reached."""
        idle = int(self.lease_seconds * 1000)
        lanes = self._filled_lanes()
        commands = b"".join(pack("XPENDING", key, GROUP, "IDLE", idle, "-", "+", limit) for key in lanes)
        deliveries: list[Delivery] = []
        for key, pending in zip(lanes, self._ask(commands, len(lanes)) if lanes else (), strict=True):
            if isinstance(pending, Exception):  # the group is gone; the next read makes it again
                continue
            unacknowledged = self._leases.unacknowledged(key)  # idle after an outage, until the next renewal
            counts = {entry_id: times + 1 for entry_id, _, _, times in pending if entry_id not in unacknowledged}
            if ids := list(counts)[: limit - len(deliveries)]:
                # If several look at the same time, one gets each entry: the claim resets its idle time.
                try:
                    most = self._max_message_bytes
                    [claimed] = self._ask(pack("EVAL", _CLAIM, 1, key, most, GROUP, self.name, idle, *ids), 1)
                except BrokerUnavailable:
                    if not deliveries:
                        raise
                    return deliveries  # from earlier lanes: renewed from here on. The next fetch reports the outage
                if isinstance(claimed, Exception):
                    continue
                # Redis 6.2 answers nil for an entry that was deleted while pending.
                deliveries += self._deliveries(
                    key, [entry for entry in claimed if entry and entry[1] is not None], counts
                )
        if len(deliveries) < limit:
            self._take_over_at = time.monotonic() + self.lease_seconds / 3
        return deliveries

    def _filled_lanes(self) -> list[bytes]:
        """The lanes with entries; all of them where Redis cannot tell."""
        if not (lanes := list(self._lanes)):
            return []
        [filled] = self._ask(pack("EVAL", _FILLED, len(lanes), *lanes, *lanes, *("0" for _ in lanes)), 1)
        return lanes if isinstance(filled, Exception) else [lanes[number - 1] for number in filled]

    def _deliveries(self, key: bytes, entries: Sequence[Any], counts: Mapping[bytes, int]) -> list[Delivery]:
        """Deliveries of `[id, fields]`, renewed from now on; `counts` has the deliveries of those that are not new."""
        self._leases.hold(key, [entry[0] for entry in entries])
        queue, priority = self._lanes[key]
        result = []
        for entry_id, fields, *cut in entries:
            size = cut[0] if cut else sum(map(len, fields))
            envelope, raw = _read_entry(queue, priority, fields, size if size > self._max_message_bytes else None)
            result.append(Delivery(envelope, raw, counts.get(entry_id, 1), (key, entry_id), self))
        return result

    def _ask(self, packed: bytes, replies: int, before_reading: Callable[[], None] | None = None) -> list[Reply]:
        """Ask on the connection for fetching."""
        self.step_at = time.monotonic()
        try:
            return self._connections.call_on(self._connection, packed, replies, before_reading=before_reading)
        except BrokerUnavailable:
            self._disconnect()
            raise


def _read_entry(
    queue: str, priority: Priority, fields: list[bytes], full_size: int | None = None
) -> tuple[Envelope, bytes]:
    """The envelope of an entry, and its raw bytes. A foreign entry has no headers, and all its fields as the body.

    Arguments:
        full_size: of an entry over the limit, of whose fields the beginning is kept.
    """
    if full_size is not None:
        fields = [field[:KEPT_BYTES] for field in fields[:4]]
    if len(fields) == 4 and fields[0] == b"h" and fields[2] == b"b":
        try:
            headers = from_json(fields[1])
        except ValueError:
            headers = None
        if isinstance(headers, dict):
            return Envelope(queue, priority, headers, fields[3], full_size), fields[3]
    raw = b"\n".join(name + b"=" + value for name, value in zip(fields[::2], fields[1::2], strict=True))
    return Envelope(queue, priority, {}, raw, full_size), raw
