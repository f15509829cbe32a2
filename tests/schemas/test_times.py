from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest

from penstock.config.errors import ConfigError, KindError
from penstock.config.sections.schedules import ScheduleSettings, WrongSchedule, duration_text, read_entry
from penstock.schemas import Job, registry, scheduled
from penstock.schemas.schedules.decorator import declarations
from penstock.schemas.schedules.times import Times, jitter_offset

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def times(**settings: Any) -> Times:
    return Times(ScheduleSettings(kind="x", **settings))


def dates(count: int, after: datetime = NOW, **settings: Any) -> list[str]:
    return [time.strftime("%a %Y-%m-%d %H:%M") for time in islice(times(**settings).after(after), count)]


def test_an_interval_is_counted_from_its_anchor_and_does_not_drift() -> None:
    every = {"every": "25m", "anchor": "2026-11-20T00:10:00Z"}
    assert dates(2, **every) == ["Fri 2026-11-20 12:15", "Fri 2026-11-20 12:40"]
    # Asked late by whatever it is, and years on, it is one of the same times.
    late = times(**every).next(NOW + timedelta(minutes=14, seconds=59, microseconds=999_999))
    assert late == NOW + timedelta(minutes=15)
    far = times(**every).next(NOW + 3000 * DAY)
    assert far is not None
    assert (far - NOW - timedelta(minutes=15)) % timedelta(minutes=25) == timedelta()
    assert dates(2, every="1h") == ["Fri 2026-11-20 13:00", "Fri 2026-11-20 14:00"]
    assert times(every=90).next(NOW) == NOW + timedelta(seconds=90)  # 1970 began with a full one


def test_an_anchor_without_an_offset_is_on_the_clock_of_the_zone() -> None:
    assert dates(1, every="1d", anchor="2026-01-01T03:00", timezone="Europe/Berlin") == ["Sat 2026-11-21 02:00"]


def test_an_interval_goes_by_elapsed_time_through_a_change_of_the_clock() -> None:
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)
    moments = list(islice(times(every="6h", timezone="Europe/Berlin").after(before), 8))
    assert {b - a for a, b in pairwise(moments)} == {6 * HOUR}


def test_a_single_time_comes_once() -> None:
    assert dates(3, at="2026-12-24T18:00", timezone="Europe/Berlin") == ["Thu 2026-12-24 17:00"]
    assert dates(3, at="2026-11-20T12:00:00Z") == []
    assert times(at="2026-11-20T12:00:00Z").choose(NOW, NOW) == ([NOW], None)


def test_the_last_business_day_of_each_month() -> None:
    last = {"cron": "0 18 L * *", "calendar": "DE-BY", "closed": "before"}
    assert dates(4, datetime(2026, 3, 1, tzinfo=UTC), **last) == [
        "Tue 2026-03-31 18:00",
        "Thu 2026-04-30 18:00",
        "Fri 2026-05-29 18:00",
        "Tue 2026-06-30 18:00",
    ]
    # Good Friday and Easter Monday: the last of March 2024 is a Sunday.
    assert dates(1, datetime(2024, 3, 1, tzinfo=UTC), **last) == ["Thu 2024-03-28 18:00"]
    weekdays = last | {"cron": "0 18 LW * *"}
    assert dates(1, datetime(2024, 3, 1, tzinfo=UTC), **weekdays) == ["Thu 2024-03-28 18:00"]


def test_a_time_on_a_closed_day_is_left_out_or_moved() -> None:
    christmas = datetime(2026, 12, 24, tzinfo=UTC)
    daily = {"cron": "0 9 * * *", "calendar": "DE"}
    assert dates(3, christmas, closed="skip", **daily) == [
        "Thu 2026-12-24 09:00",
        "Mon 2026-12-28 09:00",
        "Tue 2026-12-29 09:00",
    ]
    pay = {"cron": "30 8 26 * *", "calendar": "DE"}
    assert dates(1, christmas, closed="before", **pay) == ["Thu 2026-12-24 08:30"]
    assert dates(1, christmas, closed="after", **pay) == ["Mon 2026-12-28 08:30"]
    # Times that coincide are one, in the order of the clock, wherever the search begins.
    twice = {"cron": "0 9,17 * * sat,sun", "calendar": "DE", "closed": "after"}
    for after in (christmas, christmas + 2 * DAY, christmas + 3 * DAY + HOUR):
        assert dates(2, after, **twice) == ["Mon 2026-12-28 09:00", "Mon 2026-12-28 17:00"]
    with pytest.raises(ConfigError, match="never fires on a business day"):
        times(cron="0 0 25 12 *", calendar="DE", closed="skip")


def test_a_market_has_a_calendar_too() -> None:
    thanksgiving = dates(2, datetime(2026, 11, 25, tzinfo=UTC), cron="0 9 * * *", calendar="NYSE", closed="skip")
    assert thanksgiving == ["Wed 2026-11-25 09:00", "Fri 2026-11-27 09:00"]
    with pytest.raises(ConfigError, match="unknown calendar 'Mars'"):
        times(cron="0 9 * * *", calendar="Mars", closed="skip")


def chosen(first: datetime, now: datetime, **settings: Any) -> tuple[int, datetime | None, datetime | None]:
    """How many times make a job, the first of them, and the next one."""
    choice, following = times(cron="0 * * * *", **settings).choose(first, now)
    return len(choice), choice[0] if choice else None, following


def test_a_time_that_has_just_come_is_not_missed() -> None:
    for misfire in ("skip", "once", "all"):
        assert chosen(NOW, NOW + timedelta(seconds=30), misfire=misfire) == (1, NOW, NOW + HOUR)


def test_missed_times_are_dropped_or_made_up_for() -> None:
    late = NOW + 5 * HOUR + timedelta(minutes=30)
    assert chosen(NOW, late, misfire="skip") == (0, None, NOW + 6 * HOUR)
    assert chosen(NOW, late, misfire="once") == (1, NOW + 5 * HOUR, NOW + 6 * HOUR)
    assert chosen(NOW, late, misfire="all") == (6, NOW, NOW + 6 * HOUR)
    assert chosen(NOW, NOW + 5 * HOUR, misfire="skip") == (1, NOW + 5 * HOUR, NOW + 6 * HOUR)


def test_missed_times_older_than_the_window_are_dropped() -> None:
    late = NOW + 5 * HOUR + timedelta(minutes=30)
    assert chosen(NOW, late, misfire="once", catch_up="20m") == (0, None, NOW + 6 * HOUR)
    assert chosen(NOW, late, misfire="once", catch_up="40m") == (1, NOW + 5 * HOUR, NOW + 6 * HOUR)
    assert chosen(NOW, late, misfire="all", catch_up="2h") == (2, NOW + 4 * HOUR, NOW + 6 * HOUR)
    assert chosen(NOW, late, misfire="all", catch_up="10m") == (0, None, NOW + 6 * HOUR)
    # A single one that is late, too.
    assert chosen(NOW, NOW + timedelta(minutes=50), misfire="all", catch_up="30m") == (0, None, NOW + HOUR)


def test_a_long_absence_is_not_walked_through_time_by_time() -> None:
    rule = times(cron="* * * * * *")
    now = NOW + 2000 * DAY
    assert rule.choose(NOW, now) == ([now], now + timedelta(seconds=1))


def test_start_and_until_bound_the_times() -> None:
    bounds = {"start": "2026-03-01T00:00", "until": "2026-03-03T03:00", "timezone": "Europe/Berlin"}
    for rule in ({"cron": "0 3 * * *"}, {"every": "1d", "anchor": "2026-03-01T03:00"}):
        all_times = list(times(**rule, **bounds).after(datetime(2026, 1, 1, tzinfo=UTC)))
        assert all_times == [datetime(2026, 3, day, 2, tzinfo=UTC) for day in (1, 2)]
    assert times(at="2026-03-03T03:00", **bounds).next(datetime(2026, 1, 1, tzinfo=UTC)) is None


def test_jitter_is_the_same_for_a_schedule_each_time_and_another_for_another() -> None:
    jitter = timedelta(minutes=10)
    offsets = [jitter_offset(f"s{number}", jitter) for number in range(1000)]
    assert offsets == [jitter_offset(f"s{number}", jitter) for number in range(1000)]
    assert all(timedelta() <= offset < jitter for offset in offsets)
    assert sum(offset < jitter / 2 for offset in offsets) == pytest.approx(500, abs=100)
    assert jitter_offset("s", timedelta()) == timedelta()


@pytest.mark.parametrize(
    ("values", "key", "error"),
    [
        ({"cron": "* * * * *"}, "kind", "kind: Field required"),
        ({"kind": "x"}, "", "give one of cron, every and at, not none"),
        ({"kind": "x", "cron": "* * * * *", "every": "1m"}, "", "not cron and every"),
        ({"kind": "x", "cron": "* * * * *", "timezone": "Mars/Base"}, "timezone", "unknown time zone 'Mars/Base'"),
        ({"kind": "x", "every": "1 parsec"}, "every", "is not a duration"),
        ({"kind": "x", "every": "0s"}, "every", "must be 0.1s or more, in whole milliseconds"),
        ({"kind": "x", "every": "0.0005s"}, "every", "whole milliseconds"),
        ({"kind": "x", "every": "1d", "expires_in": "0s"}, "expires_in", "more than 0s"),
        ({"kind": "x", "cron": "@daily", "anchor": "2026-01-01T00:00"}, "", "anchor goes with every only"),
        ({"kind": "x", "cron": "@daily", "calendar": "DE"}, "", "calendar and closed go together"),
        ({"kind": "x", "every": "1d", "calendar": "DE", "closed": "skip"}, "", "calendar goes with cron only"),
        ({"kind": "x", "every": "1d", "catch_up": "10s"}, "catch_up", "the minimum is 1m"),
        ({"kind": "x", "every": "1d", "jitter": "2d"}, "jitter", "between 0s and 1d"),
        ({"kind": "x", "every": "1d", "overlap": "wait"}, "overlap", "'skip', 'allow', 'queue' or 'replace'"),
        ({"kind": "x", "at": "soon"}, "at", "datetime"),
        ({"kind": "x", "cron": "@daily", "retries": 3}, "retries", "retries: unknown setting"),
        (3, "", "must be a table"),
    ],
)
def test_wrong_settings_are_reported(values: Any, key: str, error: str) -> None:
    wrong = read_entry(values)
    assert isinstance(wrong, WrongSchedule)
    assert wrong.key == key
    assert error in wrong.error


def test_durations_are_written_as_they_are_read() -> None:
    for text in ("45s", "15m", "90m", "2h", "1d", "36h", "2w"):
        settings = ScheduleSettings(kind="x", every=text)
        assert settings.every is not None
        assert duration_text(settings.every) == text
        assert ScheduleSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_schedule_is_declared_next_to_its_job() -> None:
    @scheduled(cron="0 3 * * *", timezone="Europe/Berlin", payload={"days": 7}, misfire="skip")
    @scheduled(every=timedelta(minutes=5), name="times.often")
    class CleanUp(Job, kind="times.clean_up"):
        days: int = 30

    try:
        assert CleanUp().days == 30
        nightly, often = declarations["times.clean_up"], declarations["times.often"]
        assert nightly.where.startswith(f"{__file__}:")
        assert nightly.module == __name__
        settings = read_entry(nightly.values)
        assert settings == ScheduleSettings(
            kind="times.clean_up", cron="0 3 * * *", timezone="Europe/Berlin", payload={"days": 7}, misfire="skip"
        )
        assert read_entry(often.values) == ScheduleSettings(kind="times.clean_up", every="5m")
        with pytest.raises(KindError, match=r"times\.often.*declared at"):

            @scheduled(cron="@daily", name="times.often")
            class Other(Job, kind="times.other"):
                pass
    finally:
        for name in ("times.clean_up", "times.often"):
            declarations.pop(name, None)
        for name in ("times.clean_up", "times.other"):
            if (kind := registry.find(name)) is not None:
                registry.discard(kind)


def test_a_class_without_a_kind_cannot_be_scheduled() -> None:
    with pytest.raises(KindError, match="has no kind"):

        @scheduled(cron="@daily")
        class Abstract(Job):
            pass
