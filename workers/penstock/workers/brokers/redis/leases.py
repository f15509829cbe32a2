"""The leases of one Redis consumer: renewed until settled, and settled even across an outage."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence

from penstock.config.errors import BrokerUnavailable
from penstock.config.supervision import start_thread
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import Reply, pack
from penstock.producers.senders.redis.sender import GROUP, refusal
from penstock.workers.brokers.redis.lease_keeper import LeaseKeeper

log = logging.getLogger(__name__)

Tag = tuple[bytes, bytes]
"""The key of a lane, and the id of an entry in it."""

_AT_ONCE = 1000
"""Entries in one call of a script: Lua takes some thousand arguments."""
_RETRY_SECONDS = 1.0

# Renews only what is still this consumer's: after a stop longer than its lease (a suspended machine) it would take back
# what others run by now. Returns the ids that it has lost.
_RENEW = """
local lost, mine = {}, {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
for i = 3, #ARGV do
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending == 1 then table.insert(mine, ARGV[i]) else table.insert(lost, ARGV[i]) end
end
if #mine > 5 then
  for _, option in ipairs({'IDLE', 0, 'JUSTID'}) do table.insert(mine, option) end
  redis.call(unpack(mine))
end
return lost
"""

# In one step: deleted but pending, or acknowledged but still in the stream, an entry would never go away. Not by a
# transaction, whose commands a Redis at its maxmemory refuses.
_SETTLE = """
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
"""

# Puts a copy at the end of the lane in place of the entry; does nothing if the entry has another owner now, or is done.
# A Redis at its maxmemory refuses XADD, but not after a first write of the same script.
_RELEASE = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
if entry then redis.call('XADD', KEYS[1], '*', unpack(entry[2])) end
return 1
"""


class Leases:
    """The entries that a consumer holds, renewed every third of the lease by a thread. Thread-safe.

    Arguments:
        keeper: renews instead while the thread gets no turn; closed with this.
    """

    def __init__(
        self, connections: RedisConnections, name: str, lease_seconds: float, keeper: LeaseKeeper | None = None
    ) -> None:
        self.connections, self.name, self.lease_seconds = connections, name, lease_seconds
        self._lease_keeper = keeper
        self._lock = threading.Lock()
        self._held: dict[bytes, set[bytes]] = {}
        self._settled: dict[bytes, list[bytes]] = {}
        self._retry_at = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            if self._lease_keeper is not None:
                self._lease_keeper.start()
            self._thread = start_thread("penstock leases", self._renew_regularly, self._stopping)

    def follow(self, server_url: str) -> None:
        """Renew on this server from now on: the entries are there."""
        if self._lease_keeper is not None:
            self._lease_keeper.follow(server_url)

    def stop(self) -> None:
        """End the renewals and settle what is left to settle."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._lease_keeper is not None:
            self._lease_keeper.close()
        self._stopping.clear()
        self._retry_at = 0.0
        self.flush()

    def hold(self, lane: bytes, ids: Iterable[bytes]) -> None:
        with self._lock:
            if lane not in self._held and self._lease_keeper is not None:
                self._lease_keeper.watch(lane)
            self._held.setdefault(lane, set()).update(ids)

    def unacknowledged(self, lane: bytes) -> set[bytes]:
        """A copy of the ids held in a lane."""
        with self._lock:
            return set(self._held.get(lane, ()))

    def settle(self, tags: Sequence[Tag]) -> None:
        """Acknowledge and delete the entries. While Redis is unavailable they are kept, renewed and tried again."""
        with self._lock:
            for lane, entry_id in tags:
                self._settled.setdefault(lane, []).append(entry_id)
        if time.monotonic() >= self._retry_at:  # else each call would wait for the timeout of a silent host
            self.flush()

    def flush(self) -> None:
        """Settle in one round trip the entries given to `settle`. Those that Redis refuses are kept for later."""
        with self._lock:
            settled, self._settled = self._settled, {}
        parts = [
            (lane, ids[start : start + _AT_ONCE])
            for lane, ids in settled.items()
            for start in range(0, len(ids), _AT_ONCE)
        ]
        if not parts:
            return
        commands = b"".join(pack("EVAL", _SETTLE, 1, lane, GROUP, *ids) for lane, ids in parts)
        replies: Sequence[Reply]
        try:
            replies = self.connections.call(commands, len(parts))
        except BrokerUnavailable as error:
            replies = [error] * len(parts)
        with self._lock:
            for (lane, ids), reply in zip(parts, replies, strict=True):
                if isinstance(reply, Exception):
                    self._settled.setdefault(lane, []).extend(ids)
                else:
                    self._held.get(lane, set()).difference_update(ids)
        if reason := refusal(replies):
            log.warning("acknowledgements are kept for later: %s", reason)
            self._retry_at = time.monotonic() + _RETRY_SECONDS

    def release(self, tags: Sequence[Tag]) -> None:
        """Give entries back. During an outage they are only forgotten: others get them when the lease has passed."""
        if not tags:
            return
        self._forget(tags)
        commands = b"".join(pack("EVAL", _RELEASE, 1, lane, GROUP, self.name, entry_id) for lane, entry_id in tags)
        try:
            self.connections.call(commands, len(tags))
        except BrokerUnavailable as error:
            log.warning("%d jobs come back with the end of their lease: %s", len(tags), error)

    def renew(self) -> None:
        """Reset the idle time of everything held; forget what was lost to others.

        Raises:
            BrokerUnavailable: and the leases run on.
        """
        with self._lock:
            held = [(lane, sorted(ids)) for lane, ids in self._held.items() if ids]
        for lane, ids in held:
            for start in range(0, len(ids), _AT_ONCE):
                part = ids[start : start + _AT_ONCE]
                [lost] = self.connections.execute(pack("EVAL", _RENEW, 1, lane, GROUP, self.name, *part))
                self._forget([(lane, entry_id) for entry_id in lost])

    def _forget(self, tags: Sequence[Tag]) -> None:
        with self._lock:
            for lane, entry_id in tags:
                self._held.get(lane, set()).discard(entry_id)

    def _renew_regularly(self) -> None:
        pause = self.lease_seconds / 3
        due = time.monotonic() + pause
        while not self._stopping.wait(pause):
            if (late := time.monotonic() - due) > self.lease_seconds:
                log.warning(
                    "this process stood still, or a handler held the interpreter, for %.0f s, longer than a lease; "
                    "isolate=True gives such a handler a process of its own",
                    late,
                )
            try:
                self.renew()
                self.flush()
                pause = self.lease_seconds / 3
            except BrokerUnavailable as error:
                log.warning("leases could not be renewed: %s", error)
                pause = min(_RETRY_SECONDS, self.lease_seconds / 10)
            if self._lease_keeper is not None:
                self._lease_keeper.renewed()  # or failed to, as the lease keeper would
            due = time.monotonic() + pause
