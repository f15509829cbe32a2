"""Change notifications over Redis: subscribers of a job are notified when its row changes.

See `producers/handles/redis_listener.py` for the subscribers' side.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from penstock.config.errors import BrokerUnavailable
from penstock.config.supervision import start_thread
from penstock.producers.handles.redis_listener import channel_start, watched_key
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack

log = logging.getLogger("penstock.worker")

_REST_SECONDS = 0.005
"""The pause after a look that found no subscriber. Jobs that change in the meantime share the next look, so that a busy
worker seldom looks."""
_LOOK_SECONDS = 0.5
"""A look counts for so long."""
_OUTAGE_SECONDS = 1.0
"""The pause while Redis is unavailable. Nothing is published then, and subscribers poll."""
_AT_ONCE = 1000

_PUBLISH = """
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then redis.call('PUBLISH', ARGV[1] .. ARGV[i], '') end
end
return redis.call('EXISTS', KEYS[1])
"""


class ChangePublisher:
    """Publishes from a thread of its own, so that neither the ledger nor acknowledgements wait for it. Thread-safe.

    Publish only after a change is committed: a notified subscriber reads the ledger at once.

    Attributes:
        has_subscribers: whether any job had a subscriber at the last look.
    """

    def __init__(self, connections: RedisConnections, *, prefix: str) -> None:
        self._connections = connections
        self._key, self._channels = watched_key(prefix), channel_start(prefix)
        self.has_subscribers = False
        self._looked_at = 0.0
        self._batches: deque[Sequence[str]] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def may_have_subscribers(self) -> bool:
        """Whether a change is worth publishing: the last look found subscribers, or was not a moment ago."""
        return self.has_subscribers or time.monotonic() - self._looked_at > _LOOK_SECONDS

    def start(self) -> None:
        self._thread = start_thread("penstock changes", self._run, self._stopping, vital=False)

    def close(self) -> None:
        """Publish what is left, and end the thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._connections.close()

    def publish(self, job_ids: Sequence[str]) -> None:
        """Notify the subscribers of these jobs. Without jobs, only look whether there are subscribers."""
        self._batches.append(job_ids)
        self._wake.set()

    def look(self) -> None:
        """Look whether there are subscribers, unless that was done a moment ago."""
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self.publish(())

    def _run(self) -> None:
        while self._batches or not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()
            self._looked_at = time.monotonic()
            job_ids: list[str] = []
            while self._batches:
                job_ids += self._batches.popleft()
            try:
                if not self.has_subscribers:
                    self.has_subscribers = self._call(pack("EXISTS", self._key))
                if self.has_subscribers:
                    for start in range(0, len(job_ids) or 1, _AT_ONCE):
                        part = job_ids[start : start + _AT_ONCE]
                        self.has_subscribers = self._call(pack("EVAL", _PUBLISH, 1, self._key, self._channels, *part))
                pause = 0.0 if self.has_subscribers else _REST_SECONDS
            except BrokerUnavailable as error:
                log.debug("no changes are published: %s", error)
                self.has_subscribers, pause = False, _OUTAGE_SECONDS
            self._stopping.wait(pause)

    def _call(self, command: bytes) -> bool:
        """Run a command that answers whether any job has a subscriber."""
        [reply] = self._connections.execute(command)
        return bool(reply)
