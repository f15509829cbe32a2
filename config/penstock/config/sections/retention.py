"""`[retention]`: how long the ledger keeps jobs after their end, and other rows."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([hdw])")
SHORTEST = timedelta(hours=1)
"""A job's row makes a second delivery of the job harmless; no delivery comes later than this."""


def _read(value: object) -> object:
    """Text → duration; `"never"` → None."""
    if value is None or value == "never":
        return None
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    try:
        kept = float(match[1]) * _UNITS[match[2]] if match is not None else None
    except OverflowError:
        kept = None
    if kept is None:
        raise ValueError(f'{value!r} is not a retention period; write "12h", "7d", "4w" or "never"')
    if kept < SHORTEST:
        raise ValueError(f"{value!r} is too short; the minimum is 1h")
    return kept


Kept = Annotated[timedelta | None, BeforeValidator(_read)]
"""None: forever."""


class RetentionSettings(BaseModel):
    """Retention periods of ended jobs, by state, and of other rows. Attempts, effects, dead letters and
    stored results go with their job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    succeeded: Kept = timedelta(days=7)
    discarded: Kept = timedelta(days=30)
    cancelled: Kept = timedelta(days=30)
    dead: Kept = None
    """These still wait for a person's decision."""
    letters: Kept = timedelta(days=30)
    """Dead letters that were discarded, with their jobs, after that; and replayed ones that have no job."""
    firings: Kept = timedelta(days=90)
    workers: Kept = timedelta(days=30)
    """Workers that have stopped or died, after their last sign of life."""
    rates: Kept = timedelta(days=30)
    """Throughput, errors and durations of what happened, by the hour."""
    audit: Kept = None
