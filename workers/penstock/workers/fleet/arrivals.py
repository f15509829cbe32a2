"""Arrivals: how many jobs a queue gets per minute, from the broker's own counters at several times."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_SECONDS = 300.0
SHORTEST_SECONDS = 10.0
"""A rate over less would be noise: RabbitMQ gathers its counters every five seconds."""
_APART_SECONDS = 2.0


class Arrivals:
    """Counters of the queues of a broker over the last five minutes, as far as someone has looked. For one thread."""

    def __init__(self) -> None:
        self._counts: dict[str, deque[tuple[float, int]]] = {}

    def add(self, now: float, added: Mapping[str, int]) -> None:
        """Add a reading of `QueueBacklogs.added`, at a time in seconds of a clock that never goes back."""
        for queue in self._counts.keys() - added.keys():
            del self._counts[queue]
        for queue, count in added.items():
            counts = self._counts.setdefault(queue, deque())
            if counts and count < counts[-1][1]:  # it counts again from 0
                counts.clear()
            if len(counts) > 1 and counts[-1][0] - counts[-2][0] < _APART_SECONDS:
                counts.pop()
            counts.append((now, count))
            while counts[0][0] < now - WINDOW_SECONDS:
                counts.popleft()

    def per_minute(self, queue: str) -> float | None:
        """Jobs per minute that a queue got; None: the broker does not count, or was not looked at for long enough."""
        counts = self._counts.get(queue)
        if not counts or (seconds := counts[-1][0] - counts[0][0]) < SHORTEST_SECONDS:
            return None
        return (counts[-1][1] - counts[0][1]) * 60 / seconds

    @property
    def seconds(self) -> float:
        """Length of the time that the rates are of."""
        return max((counts[-1][0] - counts[0][0] for counts in self._counts.values() if counts), default=0.0)
