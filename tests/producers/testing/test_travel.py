"""Delays, expiry, schedules and unique jobs on the clock of the testing kit."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from producers.testing.kit_jobs import Alone, Latest, Newest, Nightly, Receipt, Same, async_producer, at, producer

from penstock.config.errors import (
    DuplicateJob,
)
from penstock.config.settings import ScheduleSettings, Settings
from penstock.producers.testing import Kit, testing
from penstock.producers.testing.matching import TOLERANCE

# Time.


def test_delays_are_due_when_their_time_is_travelled(penstock: Kit) -> None:
    later = at(2)
    producer.enqueue(Receipt(n=1), delay=3600)
    producer.enqueue(Receipt(n=2), run_at=later)
    penstock.travel(minutes=59)
    assert penstock.drain() == []
    penstock.travel(minutes=2)
    assert [run.job for run in penstock.drain()] == [Receipt(n=1)]
    penstock.assert_enqueued(Receipt, n=2, run_at=later)
    penstock.travel_to(later + timedelta(seconds=1))
    assert [run.job for run in penstock.drain()] == [Receipt(n=2)]


def test_absolute_times_are_those_of_the_tests_clock(penstock: Kit) -> None:
    penstock.travel(hours=10)
    before = at(11)
    producer.enqueue(Receipt(n=1), run_at=before)
    producer.enqueue(Receipt(n=2), delay=3600)
    assert len(penstock.enqueued(Receipt, run_at=(before - TOLERANCE, at(11)), delay=3600)) == 2
    assert penstock.drain() == []
    penstock.travel(minutes=61)
    assert len(penstock.drain()) == 2


def test_a_job_expires_when_its_time_is_travelled(penstock: Kit) -> None:
    producer.enqueue(Receipt(n=1), expires_in=60)
    producer.enqueue(Receipt(n=2), expires_in=600)
    penstock.travel(minutes=2)
    assert [str(run.outcome) for run in penstock.drain()] == ["discarded", "succeeded"]


def test_travel_goes_forward(penstock: Kit) -> None:
    with pytest.raises(ValueError, match="forward"):
        penstock.travel(hours=-1)
    with pytest.raises(ValueError, match="already"):
        penstock.travel_to(at(-1))
    with pytest.raises(ValueError, match="time zone"):
        penstock.travel_to(datetime(2100, 1, 1))


def test_schedules_fire_at_the_time_that_is_travelled_to() -> None:
    night = ScheduleSettings(kind="kit.nightly", cron="0 3 * * *", timezone="Europe/Berlin")
    strict = ScheduleSettings(kind="kit.nightly", cron="0 3 * * *", timezone="Europe/Berlin", misfire="skip")
    three = datetime(2100, 1, 10, 2, 0, tzinfo=UTC)  # in Berlin
    with testing(Settings(schedules={"night": night, "strict": strict})) as kit:
        assert kit.drain() == []
        kit.travel_to(three - timedelta(hours=1))
        assert len(kit.drain()) == 1  # the many nights before: one makes up for them, the other skips them
        kit.travel_to(three)
        assert [run.job for run in kit.drain()] == [Nightly(), Nightly()]
        assert kit.drain() == []


def test_a_schedule_that_may_overlap_makes_up_for_each_time() -> None:
    every = {"kind": "kit.nightly", "cron": "0 * * * *", "misfire": "all"}
    allow, skip = ScheduleSettings(overlap="allow", **every), ScheduleSettings(overlap="skip", **every)
    for settings, times in ((allow, 5), (skip, 1)):
        with testing(Settings(schedules={"hourly": settings})) as kit:
            kit.travel(hours=5)
            assert len(kit.drain()) == times


# Unique jobs.


def test_unique_jobs_are_decided_about(penstock: Kit) -> None:
    producer.enqueue(Alone(n=1))
    with pytest.raises(DuplicateJob):
        producer.enqueue(Alone(n=1))
    penstock.assert_enqueued(Alone, count=1, delay=0)
    penstock.drain()
    with pytest.raises(DuplicateJob):
        asyncio.run(async_producer.enqueue(Alone(n=1)))
    penstock.travel(hours=2)
    producer.enqueue(Alone(n=1))
    penstock.assert_enqueued(Alone, count=1)
    first = producer.enqueue(Same(n=1))
    assert producer.enqueue(Same(n=1)).id == first.id
    producer.enqueue(Newest(n=1, text="a"))
    producer.enqueue(Newest(n=1, text="b"))
    assert [entry.job for entry in penstock.enqueued(Newest)] == [Newest(n=1, text="b")]


def test_a_debounced_job_runs_when_it_was_quiet(penstock: Kit) -> None:
    producer.enqueue(Latest(n=1, text="a"))
    penstock.travel(seconds=40)
    producer.enqueue(Latest(n=1, text="b"))
    penstock.travel(seconds=40)
    assert penstock.drain() == []
    penstock.travel(seconds=40)
    assert [run.job for run in penstock.drain()] == [Latest(n=1, text="b")]
