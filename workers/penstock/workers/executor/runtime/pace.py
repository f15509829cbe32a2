"""The pace of a worker: how many jobs it will start within a moment, and so may fetch and claim ahead."""

from __future__ import annotations

import time

AHEAD_SECONDS = 0.05
"""Jobs that start within this time are worth having at hand: more batches well, and less keeps no job from others."""
MOST_AHEAD = 500
"""However fast they are: so many batch as well as more, and are what a worker that dies leaves to be looked at."""
_STALE_SECONDS = 1.0
"""For so long after the last job its time says little of the next ones."""
_SMOOTHING = 16
"""Attempts over which the mean of their seconds moves."""


class Pace:
    """Mean of the time for which an attempt takes a slot, and the time for which no slot has become free.

    By Little's law, slots over that mean is how many start in a second. While all slots are taken and nothing ends,
    whatever the mean was, the next start is as far as the last one: long jobs after short ones are noticed at once.
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._moved_at = 0.0

    def filled(self) -> None:
        """A job has taken the last free slot."""
        self._moved_at = time.monotonic()

    def ended(self, seconds: float) -> None:
        """A job has left its slot after so long."""
        self._mean = seconds if self._mean is None else self._mean + (seconds - self._mean) / _SMOOTHING
        self._moved_at = time.monotonic()

    def still_seconds(self) -> float:
        """For how long nothing has ended, provided that all slots are taken."""
        return time.monotonic() - self._moved_at

    def ahead(self, slots: int, *, full: bool) -> int:
        """How many jobs will start within `AHEAD_SECONDS`, beyond those that run; 0 until one has ended just now.

        Arguments:
            full: all slots are taken.
        """
        still = self.still_seconds()
        if self._mean is None or still > _STALE_SECONDS:
            return 0
        most = float(MOST_AHEAD)
        if full and still > AHEAD_SECONDS:
            most = min(most, AHEAD_SECONDS / (still - AHEAD_SECONDS))
        return int(min(most, slots * AHEAD_SECONDS / self._mean)) if self._mean > 0 else int(most)
