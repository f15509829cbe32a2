"""The `beat_schedule` of an adopted application: its entries become schedules, which fire as celery beat would."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import celery
import pytest
import sqlalchemy as sa
from celery.schedules import BaseSchedule, crontab, schedule, solar
from celery_example import AdoptedShop
from support.polling import until

from penstock.config.settings import Settings
from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.tables import firings
from penstock.schemas.schedules.decorator import declarations
from penstock.schemas.wire.codec import decode
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.engines.celery.adopted.beat import declare_schedules
from penstock.workers.engines.celery.adopted.request import request_of
from penstock.workers.engines.celery.adopted.tasks import adopt_tasks


class Tides(BaseSchedule):  # type: ignore[misc]
    """Times of an application's own, without a name by which dispatchers could agree."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return last_run_at + timedelta(hours=12.4) - self.now()  # type: ignore[no-any-return]


class NamedTides(Tides):
    def __repr__(self) -> str:
        return "<tides of Hamburg>"


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
    lines = list(declare_schedules(app, "timed:app", Settings()))
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


def after(schedule: Schedule, start: datetime, count: int) -> list[datetime]:
    assert schedule.times is not None, schedule.error
    return list(islice(schedule.times.after(start), count))


def test_times_that_no_rule_says_are_computed_by_celerys_own_code(app: celery.Celery) -> None:
    schedules, lines = declared(
        app,
        unlucky={"schedule": crontab(minute=30, hour=2, day_of_month="13", day_of_week="fri,sun", app=app)},
        tides={"schedule": NamedTides(app=app)},
        fast={"schedule": 0.5},
    )
    assert lines == ""
    days = (START.replace(hour=0, minute=0, second=0) + timedelta(days=number) for number in range(2500))
    fitting = [day.replace(hour=2, minute=30) for day in days if day.day == 13 and day.isoweekday() in (5, 7)]
    assert len(fitting) > 20
    assert after(schedules["unlucky"], START, len(fitting)) == [time.astimezone(UTC) for time in fitting]
    assert after(schedules["tides"], START, 2) == [START + timedelta(hours=12.4), START + timedelta(hours=24.8)]
    assert after(schedules["fast"], START, 3) == [START + timedelta(seconds=part) for part in (0.5, 1, 1.5)]


def test_the_suns_times_come_once_a_day(app: celery.Celery) -> None:
    pytest.importorskip("ephem", reason="ephem is not installed")
    schedules, lines = declared(app, evening={"schedule": solar("sunset", 52.52, 13.405, app=app)})
    assert lines == ""
    times = after(schedules["evening"], datetime(2026, 12, 31, tzinfo=BERLIN), 366)
    gaps = [later - time for time, later in pairwise(times)]
    assert timedelta(hours=23, minutes=55) < min(gaps) <= max(gaps) < timedelta(hours=24, minutes=5)
    # Almanacs have 21:33 and 15:54 for Berlin's solstices.
    solstices = [datetime(2027, 6, 21, 21, 33, tzinfo=BERLIN), datetime(2027, 12, 21, 15, 54, tzinfo=BERLIN)]
    assert all(min(abs(time - solstice) for time in times) < timedelta(minutes=2) for solstice in solstices)
    # What is found a little earlier is the same time, and is not fired again.
    assert schedules["evening"].times.next(times[0] - timedelta(seconds=1)) in times[:2]  # type: ignore[union-attr]


def test_options_of_an_entry_hold_for_its_jobs(app: celery.Celery) -> None:
    last = datetime(2026, 12, 1, tzinfo=UTC)
    schedules, lines = declared(
        app,
        short={"schedule": 60, "options": {"expires": 90, "priority": 3, "queue": "others", "headers": {"by": "beat"}}},
        limited={"schedule": timedelta(hours=5), "options": {"expires": last}},
    )
    assert lines == ""
    now = START.astimezone(UTC)
    envelope = schedules["short"].envelope(now, now)
    assert (envelope.queue, envelope.priority) == ("others", "low")  # on Redis, where 0 is the most urgent
    assert decode(envelope).expires_at == now + timedelta(seconds=90)
    _, _, request = request_of(app, "timed.clean", decode(envelope).job, "t1", "w1")
    assert (request["by"], request["delivery_info"]["routing_key"]) == ("beat", "others")
    times = after(schedules["limited"], now, 9)
    assert now < times[-1] < last <= times[-1] + timedelta(hours=5)
    assert decode(schedules["limited"].envelope(now, now)).expires_at == last


def test_what_cannot_be_a_schedule_is_named(app: celery.Celery) -> None:
    app.conf.beat_scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    schedules, lines = declared(
        app,
        tide={"schedule": Tides(app=app)},
        fast={"schedule": 0.05},
        lost={"schedule": 10, "task": "timed.gone"},
        odd={"schedule": 10, "args": (object(),)},
        dead={"schedule": 60, "options": {"expires": -1}},
        late={"schedule": 60, "options": {"countdown": 10, "shadow": "x"}},
    )
    assert {"tide", "fast", "dead", "lost", "odd"}.isdisjoint(schedules)
    for text in (
        "DatabaseScheduler",
        "'tide' is left out: a schedule of type Tides",
        "'fast' is left out: its period of 0.05 s",
        "'dead' is left out: with expires = -1",
        "no task 'timed.gone'",
        "'odd' is left out",
        "'late': its options countdown, shadow have no effect",
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
