from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest

from penstock.config.errors import ConfigError
from penstock.workers.dispatcher.cron import fire_times, next_time

BERLIN = ZoneInfo("Europe/Berlin")


def local(cron: str, after: datetime, count: int, zone: str = "Europe/Berlin") -> list[str]:
    times = islice(fire_times(cron, zone, after), count)
    return [time.astimezone(ZoneInfo(zone)).strftime("%d. %H:%M:%S %Z") for time in times]


def test_a_time_that_the_spring_skips_fires_right_after_the_gap() -> None:
    before = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
    assert local("30 2 * * *", before, 3) == ["29. 03:00:00 CEST", "30. 02:30:00 CEST", "31. 02:30:00 CEST"]


def test_a_time_that_the_autumn_repeats_fires_once() -> None:
    before = datetime(2026, 10, 24, 12, tzinfo=BERLIN)
    assert local("30 2 * * *", before, 3) == ["25. 02:30:00 CEST", "26. 02:30:00 CET", "27. 02:30:00 CET"]
    # Also for a dispatcher that looks in the second of the two hours.
    assert local("30 2 * * *", datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1), 1) == ["26. 02:30:00 CET"]


def test_rules_that_go_by_elapsed_time_fire_in_both_equal_hours() -> None:
    before = datetime(2026, 10, 25, 1, 45, tzinfo=BERLIN)
    assert local("*/30 * * * *", before, 4) == [
        "25. 02:00:00 CEST",
        "25. 02:30:00 CEST",
        "25. 02:00:00 CET",
        "25. 02:30:00 CET",
    ]


def test_six_fields_begin_with_seconds() -> None:
    after = datetime(2026, 1, 1, tzinfo=UTC)
    assert local("*/20 * * * * *", after, 3, "UTC") == ["01. 00:00:20 UTC", "01. 00:00:40 UTC", "01. 00:01:00 UTC"]


@pytest.mark.parametrize(
    "cron", ["*/35 * * * *", "30 2 * * *", "0 */2 * * *", "15,45 1-3 * * SUN", "0 0 L * *", "5 2,3 * * *"]
)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"])
def test_times_rise_and_are_the_same_wherever_one_begins_to_look(cron: str, zone: str) -> None:
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    times = []
    for time in fire_times(cron, zone, begin):
        if time > end:
            break
        times.append(time)
    assert times == sorted(set(times))
    for before, after in list(pairwise(times))[:: max(len(times) // 60, 1)]:
        assert next_time(cron, zone, before) == after
        assert next_time(cron, zone, after - timedelta(seconds=1)) == after


@pytest.mark.parametrize(
    "cron", ["", "* * * *", "61 * * * *", "a b c d e", "* * * * * * *", "0 0 30 2 *", "0 0 31 2,4 *"]
)
def test_a_wrong_rule_is_refused_when_it_is_read(cron: str) -> None:
    with pytest.raises(ConfigError, match="cron"):
        fire_times(cron, "UTC", datetime.now(UTC))
