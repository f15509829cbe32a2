"""`[retention]`: how long the ledger keeps what is over."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([hdw])")
SHORTEST = timedelta(hours=1)
"""A job's row is what makes a second delivery of it harmless; none comes as late as that."""


def _read(value: object) -> object:
    """`"never"` as None, and text as a duration."""
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
        raise ValueError(f'{value!r} is no time to keep; write "12h", "7d", "4w" or "never"')
    if kept < SHORTEST:
        raise ValueError(f"{value!r} is too short; 1h is the least")
    return kept


Kept = Annotated[timedelta | None, BeforeValidator(_read)]
"""None: for ever."""


class RetentionSettings(BaseModel):
    """How long jobs are kept after their end, by state, and the rest after its own. Attempts, effects, dead letters and
    stored results go with their job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    succeeded: Kept = timedelta(days=7)
    discarded: Kept = timedelta(days=30)
    cancelled: Kept = timedelta(days=30)
    dead: Kept = None
    """Nobody has decided about these yet."""
    letters: Kept = timedelta(days=30)
    """Dead letters that were discarded, with their jobs, after that; and replayed ones that have no job."""
    firings: Kept = timedelta(days=90)
    workers: Kept = timedelta(days=30)
    """Workers that have stopped or died, after their last sign of life."""
    audit: Kept = None
