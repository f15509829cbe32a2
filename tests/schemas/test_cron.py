from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from support.cron_oracle import ZONES, Oracle, some_rule

from penstock.config.errors import ConfigError
from penstock.schemas.schedules.cron import Cron, clock_changes, localized

BERLIN, HOWE = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe")
SEED = int(os.environ.get("PENSTOCK_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
RULES = int(os.environ.get("PENSTOCK_TEST_CRON_RULES", "2"))
"""Rules compared at each place in time."""
BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def local(cron: str, after: datetime, count: int, zone: ZoneInfo = BERLIN) -> list[str]:
    times = islice(Cron(cron, zone).after(after), count)
    return [time.astimezone(zone).strftime("%d. %H:%M:%S %Z") for time in times]


def between(rule: str, zone: ZoneInfo, begin: datetime, end: datetime) -> list[datetime]:
    return list(takewhile(lambda time: time < end, Cron(rule, zone).after(begin - timedelta(seconds=1))))


SPRING, AUTUMN = datetime(2026, 3, 28, 12, tzinfo=BERLIN), datetime(2026, 10, 24, 12, tzinfo=BERLIN)


def test_a_time_that_the_spring_skips_fires_right_after_the_gap() -> None:
    assert local("30 2 * * *", SPRING, 3) == ["29. 03:00:00 CEST", "30. 02:30:00 CEST", "31. 02:30:00 CEST"]
    # Also with seconds, and once for all that is skipped.
    assert local("15 30 2 * * *", SPRING, 2) == ["29. 03:00:00 CEST", "30. 02:30:15 CEST"]
    assert local("0,20,40 2 * * *", SPRING, 2) == ["29. 03:00:00 CEST", "30. 02:00:00 CEST"]
    assert local("*/30 2 * * *", SPRING, 2) == ["29. 03:00:00 CEST", "30. 02:00:00 CEST"]
    assert local("0 2,3 * * *", SPRING, 2) == ["29. 03:00:00 CEST", "30. 02:00:00 CEST"]


def test_a_rule_for_every_hour_misses_nothing_by_a_gap() -> None:
    before = datetime(2026, 3, 29, 1, tzinfo=BERLIN)
    assert local("30 * * * *", before, 2) == ["29. 01:30:00 CET", "29. 03:30:00 CEST"]
    # But half an hour is not made up for by the next hour.
    assert local("0 * * * *", datetime(2026, 10, 4, 1, 30, tzinfo=HOWE), 2, HOWE) == [
        "04. 02:30:00 +11",
        "04. 03:00:00 +11",
    ]


def test_a_time_that_the_autumn_repeats_fires_once() -> None:
    assert local("30 2 * * *", AUTUMN, 3) == ["25. 02:30:00 CEST", "26. 02:30:00 CET", "27. 02:30:00 CET"]
    assert local("15 30 2 * * *", AUTUMN, 2) == ["25. 02:30:15 CEST", "26. 02:30:15 CET"]
    # Also for a dispatcher that looks in the second of the two hours.
    assert local("30 2 * * *", datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1), 1) == ["26. 02:30:00 CET"]


def test_rules_that_go_by_elapsed_time_fire_in_both_equal_hours() -> None:
    before = datetime(2026, 10, 25, 1, 45, tzinfo=BERLIN)
    both = ["25. 02:00:00 CEST", "25. 02:30:00 CEST", "25. 02:00:00 CET", "25. 02:30:00 CET"]
    assert local("*/30 * * * *", before, 4) == local("*/30 2 * * *", before, 4) == both
    assert local("*/30 * * * *", datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN), 3) == both[1:]
    assert local("0 * * * *", before, 2) == ["25. 02:00:00 CEST", "25. 02:00:00 CET"]


def test_a_day_without_midnight_fires_daily_rules_all_the_same() -> None:
    cairo = ZoneInfo("Africa/Cairo")
    [change, *_] = [at for at, by in clock_changes(cairo, BEGIN, END) if by > timedelta()]
    assert change.astimezone(cairo).hour == 1
    assert next(Cron("@daily", cairo).after(change - timedelta(hours=3))) == change


def test_six_fields_begin_with_seconds() -> None:
    after = datetime(2026, 1, 1, tzinfo=UTC)
    seconds = local("*/20 * * * * *", after, 3, ZoneInfo("UTC"))
    assert seconds == ["01. 00:00:20 UTC", "01. 00:00:40 UTC", "01. 00:01:00 UTC"]


@pytest.mark.parametrize(
    ("rule", "same"),
    [
        ("@daily", "0 0 * * *"),
        ("@Weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@hourly", "0 * * * *"),
        ("0 9 * jan-mar mon-fri", "0 9 * 1-3 1-5"),
        ("0 9 * * 7", "0 9 * * sun"),
        ("0 9 * * sat-sun", "0 9 * * 0,6"),
        ("0 9 * * 6-7", "0 9 * * 0,6"),
        ("0 9 * * fri-mon", "0 9 * * 5,6,0,1"),
        ("0 9 * * 7-2", "0 9 * * 0,1,2"),
        ("0 9 * * 7-sun", "0 9 * * 0"),
        ("0 9 * * fri-tue/2", "0 9 * * 5,0,2"),
        ("0 22-2 * * *", "0 22,23,0,1,2 * * *"),
        ("0 22-4/3,12 * * *", "0 22,1,4,12 * * *"),
        ("50-10/10 * * * *", "50,0,10 * * * *"),
        ("0 9 28-2 nov-feb *", "0 9 28,29,30,31,1,2 11,12,1,2 *"),
        ("55-5/5 0 0 * * *", "55,0,5 0 0 * * *"),
        ("*/60 */24 * */12 *", "0 0 * 1 *"),
    ],
)
def test_names_of_days_and_months_are_numbers(rule: str, same: str) -> None:
    assert local(rule, SPRING, 20) == local(same, SPRING, 20)


@pytest.mark.parametrize("zone", ZONES)
def test_ten_years_of_any_zone_are_as_its_clock_shows_them(zone: str) -> None:
    """Around some of the changes of the clock, and in some other weeks, drawn again each time."""
    draw, info = random.Random(f"{SEED} {zone}"), ZoneInfo(zone)
    print(f"PENSTOCK_TEST_SEED={SEED}")
    changes = [at for at, _ in clock_changes(info, BEGIN, END)]
    places = [at - DAY for at in draw.sample(changes, min(len(changes), 3))]
    places += [BEGIN + timedelta(minutes=draw.randrange((END - BEGIN - 9 * DAY) // timedelta(minutes=1)))]
    for begin in places:
        length = 2 if begin + DAY in changes else 8
        for rule in (some_rule(draw) for _ in range(RULES)):
            end = begin + length * DAY
            assert between(rule, info, begin, end) == list(Oracle(rule).fires(info, begin, end)), (rule, begin)


@pytest.mark.parametrize(
    ("rule", "instead"),
    [
        ("*/90 * * * *", 'every = "90m"'),
        ("5/61 * * * *", 'every = "61m"'),
        ("0 0,*/36 * * *", 'every = "36h"'),
        ("0 0 1-31/40 * *", 'every = "40d"'),
        ("0 0 * * */8", 'every = "8d"'),
        ("*/90 * * * * *", 'every = "90s"'),
        ("0 0 1 */18 *", "name the months"),
    ],
)
def test_a_step_that_is_larger_than_its_field_is_refused_with_the_way_to_write_it(rule: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=instead):
        Cron(rule, BERLIN)


@pytest.mark.parametrize("cron", ["35 */3 * * *", "30 2 * * *", "0 */2 * * *", "15,45 1-3 * * SUN", "0 0 L * *"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_times_are_the_same_wherever_one_begins_to_look(cron: str, zone: str) -> None:
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    rule = Cron(cron, ZoneInfo(zone))

    def all_of() -> Iterator[datetime]:
        return takewhile(lambda time: time <= end, rule.after(begin))

    times = list(all_of())
    assert times == sorted(set(times))
    changes = [at for at, _ in clock_changes(ZoneInfo(zone), begin, end)]
    near = [pair for pair in pairwise(times) if any(abs(pair[0] - at) < DAY for at in changes)]
    for before, after in [*near, *list(pairwise(times))[:: max(len(times) // 30, 1)]]:
        assert next(rule.after(before)) == after
        assert next(rule.after(after - timedelta(microseconds=1))) == after


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "61 * * * *",
        "a b c d e",
        "* * * * * * *",
        "0 0 30 2 *",
        "0 0 31 2,4 *",
        "@reboot",
        "0 0 * * friL",
    ],
)
def test_a_wrong_rule_is_refused_when_it_is_read(cron: str) -> None:
    with pytest.raises(ConfigError, match="cron"):
        Cron(cron, BERLIN)


def test_a_time_without_an_offset_is_that_of_the_clock() -> None:
    def at(*parts: int) -> datetime:
        return localized(datetime(*parts), BERLIN)  # type: ignore[misc,arg-type]

    assert at(2026, 7, 1, 12) == datetime(2026, 7, 1, 10, tzinfo=UTC)
    assert at(2026, 3, 29, 2, 30) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert at(2026, 10, 25, 2, 30) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert localized(datetime(2026, 7, 1, tzinfo=BERLIN), HOWE) == datetime(2026, 6, 30, 22, tzinfo=UTC)


def test_a_rule_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="5008 characters"):
        Cron("9" * 5000 + " * * * *", BERLIN)
