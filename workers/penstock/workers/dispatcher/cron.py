"""When a cron rule fires, in its time zone.

Five fields, or six with seconds first; names (`MON`, `JAN`), steps, ranges, `L`, `LW` and `MON#2` are understood, as
CronSim documents. On the days the clock changes a five-field rule whose minute and hour are both given follows Debian's
cron: a time that the change skips fires at the first minute after it, a time that happens twice fires the first time.
Any other rule (`*/10 * * * *`, `0 * * * *`, six fields) goes by elapsed time: it fires in both of two equal hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from penstock.config.errors import ConfigError


def fire_times(cron: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """The times, in UTC and rising, at which a rule fires after an aware time. Ends if there is none for 50 years.

    Raises:
        ConfigError: the rule is wrong; when called, not when first iterated.
    """
    try:
        rule = CronSim(cron, after.astimezone(ZoneInfo(timezone)))
    except CronSimError as error:
        raise ConfigError(f"cron {cron!r}: {str(error).lower()}; see `minute hour day month weekday`") from error
    return _rising(rule, after.astimezone(UTC))


def next_time(cron: str, timezone: str, after: datetime) -> datetime | None:
    """The first of `fire_times`."""
    return next(fire_times(cron, timezone, after), None)


def _rising(rule: CronSim, last: datetime) -> Iterator[datetime]:
    for local in rule:
        time = local.astimezone(UTC)
        # In the second of two equal hours CronSim, which goes by the wall clock, answers with a time of the first.
        if time > last:
            last = time
            yield time
