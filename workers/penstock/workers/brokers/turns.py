"""Turns: which lane a worker takes its next job from.

High before normal, and normal before low, but for a tenth that is kept for low. The queues of one priority take turns
by their weights, as in fair queueing by virtual time (SFQ): a lane that was idle comes next, and saves nothing up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from penstock.schemas.jobs.kind import PRIORITIES, Priority

T = TypeVar("T")

Lane = tuple[str, Priority]
"""A queue and a priority."""

LOW_EVERY = 10
"""One job in so many is of the lowest priority, if any waits."""
_LOW = PRIORITIES[-1]


class Turns:
    """Turns of a worker's lanes. Not thread-safe, but for `weights`, which any thread may replace.

    Attributes:
        weights: of the queues; 1 for those it leaves out.
    """

    def __init__(self, weights: Mapping[str, int] | None = None) -> None:
        self.weights = weights or {}
        self._served: dict[Lane, float] = {}  # in virtual time: jobs that the lane gave, by its weight
        self._now: dict[Priority, float] = dict.fromkeys(PRIORITIES, 0.0)
        self._above = 0  # jobs of higher priorities since the low ones had their share

    def weight(self, lane: Lane) -> int:
        return self.weights.get(lane[0], 1)

    def order(self, queues: Collection[str]) -> dict[Priority, list[Lane]]:
        """The lanes by priority, the highest first, and of one priority first the lane whose turn it is."""
        names = sorted(queues)
        return {priority: sorted(((name, priority) for name in names), key=self._turn) for priority in PRIORITIES}

    def kept(self, limit: int) -> int:
        """How many of the next `limit` jobs are kept for the lowest priority."""
        return (self._above + limit) // LOW_EVERY

    def took(self, counts: Mapping[Lane, int], kept: int = 0) -> None:
        """Note how many jobs each lane gave, while so many were kept for the lowest priority."""
        starts: dict[Priority, list[float]] = {priority: [] for priority in PRIORITIES}
        for lane, count in counts.items():
            if count:
                start = self._turn(lane)[0]
                starts[lane[1]].append(start)
                self._served[lane] = start + count / self.weight(lane)
        for priority, served in starts.items():
            self._now[priority] = min(served, default=self._now[priority])
        low = sum(count for lane, count in counts.items() if lane[1] == _LOW)
        above = self._above + sum(counts.values()) - low
        self._above = max(above - low * (LOW_EVERY - 1), 0) if low >= kept else 0

    def take(self, queues: Collection[str], waiting: Mapping[Lane, deque[T]], limit: int) -> list[T]:
        """Take up to `limit` of what waits in this process."""
        if not any(waiting.values()):
            return []
        order, kept = self.order(queues), min(self.kept(limit), limit)
        jobs: dict[Lane, list[T]] = {lane: [] for lanes in order.values() for lane in lanes}

        def take_from(lane: Lane, count: int) -> int:
            lane_jobs = waiting.get(lane) or deque()
            count = min(count, len(lane_jobs))
            jobs[lane] += (lane_jobs.popleft() for _ in range(count))
            return count

        left = limit - self._share_out(order[_LOW], kept, take_from)
        for lanes in order.values():
            left -= self._share_out(lanes, left, take_from)
        self.took({lane: len(items) for lane, items in jobs.items()}, kept)
        return [item for items in jobs.values() for item in items]

    def _turn(self, lane: Lane) -> tuple[float, float]:
        served = self._served.get(lane, 0.0)
        return max(served, self._now[lane[1]]), served

    def _share_out(self, lanes: Sequence[Lane], most: int, take_from: Callable[[Lane, int], int]) -> int:
        """Take up to `most` jobs of the lanes by their weights; how many there were. The Redis consumer's script does
        the same there."""
        left = most
        while left and lanes:
            share, weights, more = left, sum(map(self.weight, lanes)), []
            for lane in lanes:
                count = min(left, -(-share * self.weight(lane) // weights))  # rounded up: the last one gets less
                if count and (got := take_from(lane, count)):
                    left -= got
                    if got == count:
                        more.append(lane)
            lanes = more
        return most - left
