"""The `beat_schedule` of an adopted application: its entries become schedules, which fire as celery beat would."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import celery
import pytest
import sqlalchemy as sa
from celery.schedules import BaseSchedule, crontab, schedule
from celery_example import AdoptedShop
from support.polling import until

from penstock.config.settings import Settings
from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.tables import firings
from penstock.schemas.schedules.decorator import declarations
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.engines.celery.adopted.beat import declare_schedules
from penstock.workers.engines.celery.adopted.request import request_of
from penstock.workers.engines.celery.adopted.tasks import adopt_tasks


class Tides(BaseSchedule):  # type: ignore[misc]
    """Times that a rule cannot say, as those of `solar`."""


BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 11, 30, 12, 17, 5, tzinfo=BERLIN)


@pytest.fixture
def app(adopted_for_a_test: None) -> Iterator[celery.Celery]:
    """An application with one task; the schedules of what it is asked to declare are forgotten afterwards."""
    app = celery.Celery("timed", set_as_current=False, fixups=set(), backend="cache+memory://")
    app.conf.timezone = "Europe/Berlin"

    @app.task(name="timed.clean", shared=False)
    def clean(*args: Any, **kwargs: Any) -> None: ...

    adopt_tasks(app, Settings())
    yield app
    for name in [name for name, declared in declarations.items() if declared.where.startswith("beat_schedule")]:
        del declarations[name]


def declared(app: celery.Celery, **entries: Any) -> tuple[dict[str, Schedule], str]:
    """The schedules, and all lines about those that are not or not quite."""
    app.conf.beat_schedule = {name: {"task": "timed.clean", **entry} for name, entry in entries.items()}
    lines = list(declare_schedules(app, "timed:app"))
    return {schedule.name: schedule for schedule in read_schedules(Settings())}, "\n".join(lines)


def test_a_crontab_fires_when_celery_says(app: celery.Celery) -> None:
    rules = {
        "quarters": crontab(minute="*/15", hour="8-17", day_of_week="mon-fri", app=app),
        "sundays": crontab(minute=0, hour="4,16", day_of_week="sun", app=app),
        "first": crontab(minute=30, hour=2, day_of_month="1,15", month_of_year="*/3", app=app),
        "each minute": crontab(app=app),
    }
    schedules, lines = declared(app, **{name: {"schedule": rule} for name, rule in rules.items()})
    assert lines == ""
    for name, rule in rules.items():
        times, now = schedules[name].times, START
        assert times is not None, schedules[name].error
        for _ in range(10):
            rule.nowfunc = lambda now=now: now
            start, delta, _ = rule.remaining_delta(now)
            following = times.next(now.astimezone(UTC))
            assert following == (start + delta).astimezone(UTC), (name, now)
            now = following.astimezone(BERLIN)


def test_periods_and_arguments_are_kept(app: celery.Celery) -> None:
    until_then = datetime(2027, 1, 1, tzinfo=UTC)
    schedules, lines = declared(
        app,
        seconds={"schedule": 30.0, "args": (1, "x"), "kwargs": {"until": until_then}},
        hours={"schedule": timedelta(hours=2), "options": {"queue": "celery"}},
        days={"schedule": schedule(timedelta(days=1))},
    )
    assert lines == ""
    rules = {name: schedules[name].settings.when for name in ("seconds", "hours", "days")}  # type: ignore[union-attr]
    assert rules == {"seconds": "every 30s", "hours": "every 2h", "days": "every 1d"}
    job = schedules["seconds"].job
    assert job is not None
    args, kwargs, _ = request_of(app, "timed.clean", job, "t1", "w1")
    assert (args, kwargs) == ([1, "x"], {"until": until_then})


def test_what_cannot_be_a_schedule_is_named(app: celery.Celery) -> None:
    app.conf.beat_scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    schedules, lines = declared(
        app,
        tide={"schedule": Tides(app=app)},
        fast={"schedule": 0.5},
        both={"schedule": crontab(day_of_month=13, day_of_week="fri", app=app)},
        lost={"schedule": 10, "task": "timed.gone"},
        odd={"schedule": 10, "args": (object(),)},
        late={"schedule": 60, "options": {"expires": 10, "priority": 3}},
    )
    assert {"tide", "fast", "both", "lost", "odd"}.isdisjoint(schedules)
    for text in (
        "DatabaseScheduler",
        "'tide' is left out: a schedule of type Tides",
        "'fast' is left out: its period of 0.5 s",
        "'both' is left out: <crontab",
        "no task 'timed.gone'",
        "'odd' is left out",
        "'late': its options expires, priority have no effect",
    ):
        assert text in lines
    assert "late" in schedules


def test_celerys_cleanup_of_results_is_scheduled_where_beat_would(app: celery.Celery) -> None:
    app.backend.supports_autoexpire = False
    schedules, _ = declared(app)
    cleanup = schedules["celery.backend_cleanup"]
    assert (cleanup.error, cleanup.settings.cron) == (None, "0 4 * * *")  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_each_time_fires_once_with_two_dispatchers(adopted: AdoptedShop) -> None:
    adopted.run("dispatcher")
    adopted.start()
    until(lambda: adopted.lines().count("sent 1000") >= 3, "three firings of the example's schedule")
    select = sa.select(firings.c.schedule, firings.c.fire_at, firings.c.job_id)
    fired = adopted.stack.database.read(lambda connection: connection.execute(select).all())
    assert {name for name, _, _ in fired} == {"remind"}
    assert len({at for _, at, _ in fired}) == len({job_id for _, _, job_id in fired}) == len(fired)
    assert adopted.lines().count("sent 1000") <= len(fired) + 1, "one may have fired since"
