"""Telling those who watch a job that its row has changed, over Redis. See `producers/watching.py` for their side."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from penstock.config.errors import BrokerUnavailable
from penstock.producers.handles.subscriptions import channel_start, watched_key
from penstock.producers.senders.redis.connections import RedisConnections, pack

log = logging.getLogger("penstock.worker")

_REST_SECONDS = 0.005
"""After a look that found nobody. What ends meanwhile shares the next one, so that a busy worker seldom looks."""
_AWAY_SECONDS = 1.0
"""While Redis is away nothing is pushed, and those who watch look by themselves."""
_AT_ONCE = 1000

_PUBLISH = """
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then redis.call('PUBLISH', ARGV[1] .. ARGV[i], '') end
end
return redis.call('EXISTS', KEYS[1])
"""


class Pushes:
    """Publishes from a thread of its own, so that neither the ledger nor acknowledgements wait for it. Thread-safe.

    Call it only after what changed is committed: who is told looks into the ledger at once.

    Attributes:
        watched: whether anybody watched any job at the last look.
    """

    def __init__(self, url: str, *, prefix: str, timeout_seconds: float) -> None:
        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds)
        self._key, self._channels = watched_key(prefix), channel_start(prefix)
        self.watched = False
        self._batches: deque[Sequence[str]] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock-pushes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Push what is left."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._connections.close()

    def changed(self, job_ids: Sequence[str]) -> None:
        """Push those of these jobs that somebody watches; with none, only see whether anybody does."""
        self._batches.append(job_ids)
        self._wake.set()

    def _run(self) -> None:
        while self._batches or not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()
            job_ids: list[str] = []
            while self._batches:
                job_ids += self._batches.popleft()
            try:
                if not self.watched:
                    self.watched = self._call(pack("EXISTS", self._key))
                if self.watched:
                    for start in range(0, len(job_ids) or 1, _AT_ONCE):
                        part = job_ids[start : start + _AT_ONCE]
                        self.watched = self._call(pack("EVAL", _PUBLISH, 1, self._key, self._channels, *part))
                rest = 0.0 if self.watched else _REST_SECONDS
            except BrokerUnavailable as error:
                log.debug("nothing is pushed: %s", error)
                self.watched, rest = False, _AWAY_SECONDS
            except Exception:  # a thread that ended here would make all who watch look by themselves
                log.exception("nothing is pushed")
                self.watched, rest = False, _AWAY_SECONDS
            self._stopping.wait(rest)

    def _call(self, command: bytes) -> bool:
        """Whether anybody watches any job."""
        [reply] = self._connections.execute(command)
        return bool(reply)
