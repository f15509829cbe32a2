"""The queues that a Redis has."""

from __future__ import annotations

import re

from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack
from penstock.schemas.jobs.kind import PRIORITIES

_COUNT = 1000
"""Keys that Redis looks at for one answer; others are served in between."""


def find_queues(url: str, prefix: str, timeout_seconds: float) -> set[str]:
    """The names of all queues under a prefix that hold jobs, or held some. It reads the names of all keys.

    Raises:
        BrokerUnavailable: within the timeout.
    """
    lane = re.compile(rf"{re.escape(prefix)}:\{{(.+)\}}:({'|'.join(PRIORITIES)})", re.DOTALL)
    connections = RedisConnections(url, timeout_seconds=timeout_seconds)
    queues: set[str] = set()
    cursor = b"0"
    try:
        while True:
            command = pack("SCAN", cursor, "MATCH", f"{prefix}:{{*}}:*", "COUNT", _COUNT)
            [(cursor, keys)] = connections.execute(command)
            matches = (lane.fullmatch(key.decode(errors="replace")) for key in keys)
            queues |= {match[1] for match in matches if match is not None}
            if cursor == b"0":
                return queues
    finally:
        connections.close()
