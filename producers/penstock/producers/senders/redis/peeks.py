"""A look at the jobs that wait in the queues of a Redis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from penstock.producers.senders.peeks import End, Peek, WaitingJob
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack
from penstock.producers.senders.redis.sender import GROUP, lane_key
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, PRIORITIES, Priority
from penstock.schemas.wire.codec import HEADER

_LONGEST_HEADERS = 64 * 1024

# Of one lane: the server's time in milliseconds, then id and headers of entries that no consumer has fetched, without
# their bodies. A key of ours may hold what a stranger has put there.
_PEEK = """
local last, groups = '0-0', redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, fields in ipairs(groups) do
  local is = {}
  for i = 1, #fields, 2 do is[fields[i]] = fields[i + 1] end
  if is.name == ARGV[1] then last = is['last-delivered-id'] end
end
local entries
if ARGV[2] == 'newest' then
  entries = redis.pcall('XREVRANGE', KEYS[1], '+', '(' .. last, 'COUNT', ARGV[3])
else
  entries = redis.pcall('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', ARGV[3])
end
local now = redis.call('TIME')
local rows = {now[1] * 1000 + math.floor(now[2] / 1000)}
for _, entry in ipairs(entries) do
  local headers = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'h' and #entry[2][i + 1] <= tonumber(ARGV[4]) then headers = entry[2][i + 1] end
  end
  rows[#rows + 1] = entry[1]
  rows[#rows + 1] = headers
end
return rows
"""


class RedisPeeks:
    """`Peeks` over Redis."""

    def __init__(self, url: str, prefix: str, timeout_seconds: float) -> None:
        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds)
        self._prefix = prefix

    def read(self, queues: Sequence[str], end: End, most: int) -> Peek:
        lanes = [(queue, priority) for queue in queues for priority in PRIORITIES]
        arguments = (GROUP, end, most + 1, _LONGEST_HEADERS)
        commands = (pack("EVAL", _PEEK, 1, lane_key(self._prefix, *lane), *arguments) for lane in lanes)
        replies = self._connections.execute(*commands) if lanes else []
        jobs: list[WaitingJob] = []
        complete = True
        for (queue, priority), (now, *entries) in zip(lanes, replies, strict=True):
            pairs = list(zip(entries[::2], entries[1::2], strict=True))
            complete = complete and len(pairs) <= most
            jobs += [_job(queue, priority, now, int(id.split(b"-")[0]), headers) for id, headers in pairs[:most]]
        return Peek(sorted(jobs, key=lambda job: (job.added_at, job.id), reverse=end == "newest"), complete)

    def close(self) -> None:
        self._connections.close()


def _job(queue: str, priority: Priority, now: int, added: int, packed: bytes) -> WaitingJob:
    headers = _object(packed)
    ours = headers.get(HEADER)
    ours = ours if isinstance(ours, dict) else {}
    tags = ours.get("tags")
    return WaitingJob(
        str(headers.get("id") or ""),
        str(headers.get("task") or ""),
        (_text(ours, "queue") if queue == DISPATCHER_QUEUE else None) or queue,
        queue,
        priority,
        _text(ours, "tenant"),
        _text(ours, "key"),
        tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        datetime.fromtimestamp(added / 1000, UTC),
        max((now - added) / 1000, 0.0),
    )


def _object(packed: bytes) -> dict[str, Any]:
    try:
        headers = json.loads(packed)
    except ValueError:
        return {}
    return headers if isinstance(headers, dict) else {}


def _text(values: dict[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None
