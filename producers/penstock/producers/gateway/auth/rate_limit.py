"""Rate limits of callers: a token bucket each, in this process."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

from penstock.producers.gateway.problems import Problem

_MOST = 10_000
"""Callers remembered; the one that was silent for longest is forgotten first, and starts with a full bucket."""


class RateLimiter:
    """Counts requests by caller. Each may save up one second's worth."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens left, timestamp)

    def acquire(self, caller_id: str, per_second: float, count: int = 1) -> None:
        """Count a request.

        Arguments:
            count: its weight. A request that weighs more than is left is let through and paid for afterwards.

        Raises:
            Problem: (429) with the time after which to try again.
        """
        if math.isinf(per_second):
            return
        now = time.monotonic()
        most = max(per_second, 1.0)
        left, since = self._buckets.get(caller_id, (most, now))
        left = min(left + (now - since) * per_second, most)
        if left < 1.0:
            wait = math.ceil((1.0 - left) / per_second)
            raise Problem(
                429, "rate-limited", f"at most {per_second:g} requests a second", headers={"Retry-After": str(wait)}
            )
        self._buckets[caller_id] = (left - count, now)
        self._buckets.move_to_end(caller_id)
        if len(self._buckets) > _MOST:
            self._buckets.popitem(last=False)
