"""Limits: how many jobs run at a time (concurrency) or start in a period (rate), over all workers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from penstock.config.errors import KindError
from penstock.schemas.jobs.durations import positive_duration

SHARES = ("queue", "tenant", "key")
"""Values of `by` besides the fields of a job."""


@dataclass(frozen=True)
class Concurrency:
    """At most `most` jobs run at a time.

    Arguments:
        most: how many, 1 or more.
        by: `queue`, `tenant`, `key` or a field of the job: each value has a limit of its own. None: all
            jobs share it.

    Raises:
        KindError: a number is out of its bounds.
    """

    most: int
    by: str | None = None

    def __post_init__(self) -> None:
        _check(self, self.most)

    @property
    def label(self) -> str:
        """Name among the limits of a kind, without the number, so that running jobs stay counted when that changes."""
        return _shared("concurrency", self.by)

    def __str__(self) -> str:
        return f"{self.most} at a time"


@dataclass(frozen=True)
class Rate:
    """At most `most` jobs start in any `per`, evenly spread.

    Arguments:
        most: how many, 1 or more.
        per: the period, in seconds or as a timedelta.
        burst: how many may start at once after a pause, 1 or more. A larger one lets up to `most + burst - 1` start in
            one period.
        by: see `Concurrency`.

    Raises:
        KindError: a number is out of its bounds.
    """

    most: int
    per: float | timedelta
    burst: int = 1
    by: str | None = None

    def __post_init__(self) -> None:
        _check(self, self.most, self.burst)
        try:
            if positive_duration("per", self.per) is None:
                raise ValueError("per must be a timedelta or a number of seconds")
        except ValueError as error:
            raise KindError(f"{self!r}: {error}") from error

    @property
    def seconds(self) -> float:
        return self.per.total_seconds() if isinstance(self.per, timedelta) else float(self.per)

    @property
    def label(self) -> str:
        """See `Concurrency`. One kind may have several rates, each with its own period."""
        return _shared(f"rate-{self.seconds:g}s", self.by)

    def __str__(self) -> str:
        return f"{self.most} per {self.seconds:g} s" + (f", {self.burst} at once" if self.burst > 1 else "")


Limit = Concurrency | Rate


def _check(limit: Limit, *counts: Any) -> None:
    if any(isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 2**31 for count in counts):
        raise KindError(f"{limit!r}: its numbers must be integers from 1 to {2**31 - 1}")
    if limit.by is not None and not isinstance(limit.by, str):
        raise KindError(f"{limit!r}: by must be the name of a field, or one of {', '.join(SHARES)}")


def _shared(name: str, by: str | None) -> str:
    return name if by is None else f"{name}-by-{by}"
