"""Backlogs of the queues of a Redis."""

from __future__ import annotations

import time
from collections.abc import Collection

from penstock.producers.senders.backlogs import QueueBacklog
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack
from penstock.producers.senders.redis.queues import find_queues
from penstock.producers.senders.redis.sender import GROUP, lane_keys

_FIND_EVERY_SECONDS, _REST = 60.0, 20.0
"""Pauses between two searches of all keys for queues, of which the second is a multiple of the search's duration."""

# Of one queue: entries that no consumer has fetched, the age of the oldest, by the server's own clock, and how many
# were added (-1: a Redis before version 7). Ids rise and begin with the time at which the entry was added. A key of
# ours may hold what a stranger has put there.
_BACKLOG = """
local waiting, oldest, added = 0, nil, 0
for _, key in ipairs(KEYS) do
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  local stream = redis.pcall('XINFO', 'STREAM', key)
  if not stream.err then
    local count
    for i = 1, #stream, 2 do if stream[i] == 'entries-added' then count = stream[i + 1] end end
    if not count then added = -1 elseif added >= 0 then added = added + count end
  end
  local length = redis.pcall('XLEN', key)
  if type(length) == 'number' and length > 0 then
    local held, last = 0, '0-0'
    for _, fields in ipairs(groups) do
      local is = {}
      for i = 1, #fields, 2 do is[fields[i]] = fields[i + 1] end
      if is.name == ARGV[1] then held, last = is.pending, is['last-delivered-id'] end
    end
    if length > held then
      waiting = waiting + length - held
      local first = redis.call('XRANGE', key, '(' .. last, '+', 'COUNT', 1)[1]
      local added = first and tonumber(string.match(first[1], '^%d+'))
      if added and (not oldest or added < oldest) then oldest = added end
    end
  end
end
if not oldest then return {waiting, 0, added} end
local now = redis.call('TIME')
return {waiting, math.max(now[1] * 1000 + math.floor(now[2] / 1000) - oldest, 0), added}
"""


class RedisBacklogs:
    """`QueueBacklogs` over Redis. A queue that others have made is found within a minute."""

    def __init__(self, url: str, prefix: str, timeout_seconds: float) -> None:
        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds)
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds
        self.added: dict[str, int] = {}
        self._found: set[str] = set()
        self._find_at = 0.0

    def read(self, queues: Collection[str]) -> dict[str, QueueBacklog]:
        began = time.monotonic()
        if began >= self._find_at:
            self._found = find_queues(self._url, self._prefix, self._timeout_seconds)
            now = time.monotonic()
            self._find_at = now + max(_FIND_EVERY_SECONDS, _REST * (now - began))
        names = sorted({*queues, *self._found})
        commands = [pack("EVAL", _BACKLOG, 3, *lane_keys(self._prefix, name), GROUP) for name in names]
        replies = self._connections.execute(*commands)
        self.added = {name: added for name, (_, _, added) in zip(names, replies, strict=True) if added >= 0}
        return {name: QueueBacklog(waiting, age / 1000) for name, (waiting, age, _) in zip(names, replies, strict=True)}

    def close(self) -> None:
        self._connections.close()
