"""Rates set by remote control: over the one that a kind declares, for all workers, as `penstock limits set` does."""

from __future__ import annotations

import re
from typing import Any

from penstock.config.errors import ConfigError
from penstock.ledger.members import controls
from penstock.ledger.sql.database import Database
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.limits import Rate

_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/([smh]))?")
_UNITS = {None: 1, "s": 1, "m": 60, "h": 3600}
_ACTOR = "remote control"


def set_rate(database: Database, kind_name: str, text: Any) -> str:
    """Set how many jobs of a kind start in the period of its rate. Each worker that gets the command may.

    Arguments:
        text: `10/s`, `100/m`, `5/h` or a number per second; 0 or nothing lifts the limit.

    Returns the answer.

    Raises:
        ConfigError: the kind declares no rate, or this is not one. LedgerUnavailable.
    """
    kind = registry.find(kind_name)
    if kind is None:
        raise ConfigError(f"unknown task {kind_name!r}")
    rates = [limit for limit in kind.limits if isinstance(limit, Rate) and limit.by is None]
    if len(rates) != 1:
        raise ConfigError(
            f"{kind.name} was declared {'without a rate' if not rates else 'with several rates'}, and then none can be "
            "set; declare one, such as 10/s, or use [limits.NAME] of penstock.toml and `penstock limits set`"
        )
    [rate] = rates
    most, name = _most(text, rate), f"{kind.name}/{rate.label}"
    if most == rate.most:
        controls.reset_limit(database, name, actor=_ACTOR)
        return f"the rate limit of {kind.name} is as declared: {rate}"
    if controls.in_force(database).limits.get(name) != most:  # else another worker has set it
        controls.set_limit(database, name, most, actor=_ACTOR)
    return f"new rate limit of {kind.name}, for all workers: {text}" if text else f"no rate limit of {kind.name}"


def _most(text: Any, rate: Rate) -> int:
    """How many in the period of a rate."""
    if not text or text == "0":
        return controls.MOST_OF_LIMIT
    match = _RATE.fullmatch(str(text)) if type(text) in (str, int, float) else None
    if match is None or not float(match[1]):
        raise ConfigError(f"{text!r} is not a rate; write 10/s, 100/m or 5/h")
    most = float(match[1]) / _UNITS[match[2]] * rate.seconds
    if round(most) < 1 or abs(most - round(most)) > 1e-6 * most:
        raise ConfigError(
            f"{text} is {most:g} in the {rate.seconds:g} s that the rate is declared for, and must be a whole number"
        )
    return min(round(most), controls.MOST_OF_LIMIT)
