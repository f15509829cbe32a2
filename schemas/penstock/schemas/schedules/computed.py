"""Times that code computes, for rules that neither cron nor an interval can say, such as those of the sun.

A schedule names its times, and each dispatcher that is to fire it registers them under that name. So the name must say
all of the rule: it is how dispatchers agree, and how a changed rule is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from penstock.config.errors import ConfigError

Compute = Callable[[datetime], datetime | None]
"""Returns the first time after a time, both in UTC; None: none follows. The same on every machine, from any thread."""

_computed: dict[str, Compute] = {}


def register_times(name: str, compute: Compute) -> None:
    """Let schedules of this process have times by this name; the same name again changes nothing."""
    _computed.setdefault(name, compute)


def computed_times(name: str) -> Compute:
    """The times of that name. Raises ConfigError: no code has registered them here."""
    compute = _computed.get(name)
    if compute is None:
        raise ConfigError(f"times {name!r}: no code has registered them here; import the application that does")
    return compute
