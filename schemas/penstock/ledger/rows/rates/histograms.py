"""Histograms of durations: how many fell into each of a fixed row of buckets, packed into few bytes.

Each bucket is a fifth wider than the one before, so a percentile is off by 10 % at most, and histograms of many
workers, kinds and minutes can be added up.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

RATIO = 1.2
"""From the end of a bucket to the end of the next one."""
_FIRST_SECONDS = 0.0001
_BUCKETS = 124
"""The last one ends after six days, and has all that is longer."""
_ENDS = [_FIRST_SECONDS * RATIO**bucket for bucket in range(_BUCKETS)]
_WIDTH = 5
"""Bytes of a count, and of the sum of all: enough for a month at 400,000 jobs a second."""
_BITS = 8 * _WIDTH
_ONES = [sum(1 << (_BITS * bucket) for bucket in range(buckets)) for buckets in range(_BUCKETS + 1)]
"""Number of buckets → a number whose digits are all 1."""


class Histogram:
    """Counts of durations by bucket, and their sum.

    The counts are the digits of one large number, so that adding up two histograms is one addition.

    Attributes:
        packed: the number.
        sum: of the durations, in seconds; one below zero, of a clock that is behind another, counts as zero.
    """

    __slots__ = ("packed", "sum")

    def __init__(self, packed: int = 0, sum: float = 0.0) -> None:
        self.packed, self.sum = packed, sum

    @classmethod
    def unpack(cls, stored: bytes | None, milliseconds: int = 0) -> Histogram:
        return cls(int.from_bytes(stored or b"", "little"), milliseconds / 1000)

    def pack(self) -> bytes | None:
        """The counts as bytes; None: it is empty."""
        return self.packed.to_bytes((self.packed.bit_length() + 7) // 8, "little") or None

    @property
    def milliseconds(self) -> int:
        """The sum."""
        return round(self.sum * 1000)

    def add(self, durations: list[float]) -> None:
        """Count durations, in seconds. Sorts the list: to look for the ends of buckets among them is quicker than the
        reverse."""
        if not durations:
            return
        durations.sort()
        start, bucket = 0, bisect_left(_ENDS, durations[0])
        while start < len(durations):
            end = bisect_right(durations, _ENDS[bucket], start) if bucket < _BUCKETS - 1 else len(durations)
            self.packed += (end - start) << (_BITS * bucket)
            start, bucket = end, bucket + 1
        below = bisect_left(durations, 0.0)
        self.sum += sum(durations[below:] if below else durations)

    def merge(self, others: Iterable[Histogram]) -> None:
        for other in others:
            self.packed += other.packed
            self.sum += other.sum

    def percentiles(self, shares: Iterable[float]) -> list[float | None]:
        """The durations that these shares of all do not exceed, in seconds, within 10 %; None: there are none.

        Arguments:
            shares: ascending, such as 0.5 and 0.95.
        """
        return self.summary(shares)[0]

    def summary(self, shares: Iterable[float]) -> tuple[list[float | None], float | None]:
        """`percentiles`, and the mean in seconds."""
        if not self.packed:
            return [None for _ in shares], None
        lowest = ((self.packed & -self.packed).bit_length() - 1) // _BITS
        packed = self.packed >> (lowest * _BITS)
        buckets = -(-packed.bit_length() // _BITS)
        # By this product each digit becomes the sum of those up to it.
        sums = (packed * _ONES[buckets]).to_bytes(2 * buckets * _WIDTH, "little")

        def count_up_to(bucket: int) -> int:
            return int.from_bytes(sums[bucket * _WIDTH : (bucket + 1) * _WIDTH], "little")

        total = count_up_to(buckets - 1)
        ranks = (math.ceil(share * total) for share in shares)
        times: list[float | None] = [
            _middle(lowest + bisect_left(range(buckets), rank, key=count_up_to)) for rank in ranks
        ]
        return times, self.sum / total


def _middle(bucket: int) -> float:
    """The value that is off by the same factor at either end of a bucket, in seconds."""
    return float(_FIRST_SECONDS * RATIO ** (bucket - 0.5))
