"""`[sentry]`, and what becomes of schedules as cron monitors, in one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sentry_sdk
import sqlalchemy as sa
from sentry_sdk.transport import Transport
from support.polling import until
from workers.telemetry.failures.test_floods import FAILURE

from penstock.config.errors import ConfigError
from penstock.config.sections.telemetry import SentrySettings
from penstock.config.settings import ScheduleSettings, Settings
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.schedules.firing import fire
from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.tables import jobs, schedules
from penstock.ledger.sql.upgrade import upgrade
from penstock.schemas import Job, RetryPolicy
from penstock.workers import handles
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.dispatcher.schedules.monitors import CronMonitors, monitor_config, slug_of
from penstock.workers.engines.inline import Inline
from penstock.workers.telemetry.failures.sentry import Sentry, init_sentry, sdk

DSN = "http://key@127.0.0.1:9/1"


class Tick(Job, kind="monitored.tick", queue="monitored", retry=RetryPolicy(max_attempts=1)):
    pass


class Fails(Job, kind="monitored.fails", queue="monitored", retry=RetryPolicy(max_attempts=1)):
    pass


@handles(Tick)
async def tick(job: Tick) -> None: ...


@handles(Fails)
async def fails(job: Fails) -> None:
    raise ValueError("no tick")


class Caught(Transport):
    items: list[dict[str, Any]]

    def capture_envelope(self, envelope: Any) -> None:
        self.items += [item.payload.json | {"item": item.type} for item in envelope.items]


@pytest.fixture
def caught() -> Iterator[list[dict[str, Any]]]:
    """Items that a client of Sentry sends; afterwards there is none, as before."""
    Caught.items = []
    sentry_sdk.init(dsn=DSN, transport=Caught, default_integrations=False)
    yield Caught.items
    sentry_sdk.get_global_scope().set_client(None)


def rule(name: str = "a rule", kind: str = "monitored.tick", **settings: Any) -> Schedule:
    [read] = read_schedules(Settings(schedules={name: ScheduleSettings(kind=kind, **settings)}))
    return read


def with_dsn(dsn: str | None) -> Settings:
    return Settings(sentry=SentrySettings(dsn=dsn, environment="tests"))


def test_without_a_dsn_nothing_is_imported_or_initialised() -> None:
    init_sentry(with_dsn(None))
    assert sdk() is None


def test_a_dsn_initialises_sentry_without_personal_data() -> None:
    """In a process of its own: Sentry's default integrations change libraries for good."""
    code = f"""
from penstock.config.sections.telemetry import SentrySettings
from penstock.config.settings import Settings
from penstock.workers.telemetry.failures.sentry import init_sentry, sdk
init_sentry(Settings(sentry=SentrySettings(dsn={DSN!r}, environment='tests')))
options = sdk().get_client().options
print(options['dsn'], options['environment'], sdk().scope.should_send_default_pii())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [DSN, "tests", "False"]


def test_a_dsn_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(ConfigError, match=r"pip install 'penstock\[sentry\]'"):
        init_sentry(with_dsn(DSN))


def test_a_wrong_dsn_is_named() -> None:
    with pytest.raises(ConfigError, match="not a DSN"):
        init_sentry(with_dsn("nonsense"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cron": "0 3 * * *", "timezone": "Europe/Berlin"}, {"type": "crontab", "value": "0 3 * * *"}),
        ({"cron": "@daily"}, {"type": "crontab", "value": "@daily"}),
        ({"every": "90m"}, {"type": "interval", "value": 90, "unit": "minute"}),
        ({"every": "48h"}, {"type": "interval", "value": 2, "unit": "day"}),
        ({"every": "90s"}, None),
        ({"cron": "30 0 3 * * *"}, None),
        ({"at": datetime(2040, 1, 1, tzinfo=UTC)}, None),
        ({"cron": "0 3 * * *", "calendar": "DE", "closed": "skip"}, None),
    ],
)
def test_a_rule_is_a_monitor_if_sentry_has_the_like(settings: dict[str, Any], expected: dict[str, Any] | None) -> None:
    config = monitor_config(rule(**settings))
    assert (None if config is None else config["schedule"]) == expected
    assert config is None or config["timezone"] == settings.get("timezone", "UTC")


def test_a_slug_has_the_characters_and_the_length_that_sentry_takes() -> None:
    assert slug_of("nightly-sales") == "nightly-sales"
    assert slug_of("Täglich um 3!") == "t-glich-um-3"
    names = ["x" * 60, "x" * 61, "日本"]
    slugs = [slug_of(name) for name in names]
    assert len(set(slugs)) == 3
    assert all(0 < len(slug) <= 50 for slug in slugs)


@pytest.mark.parametrize(("kind", "status"), [("monitored.tick", "ok"), ("monitored.fails", "error")])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_schedules_job_is_followed_to_its_end_also_by_a_dispatcher_that_took_over(
    caught: list[dict[str, Any]], kind: str, status: str, restarted: bool, sqlite_url: str
) -> None:
    configured = {"hourly": ScheduleSettings(kind=kind, cron="0 * * * *")}
    inline = Inline(Settings(database_url=sqlite_url, schedules=configured), queues=["monitored"])
    upgrade(inline.database)
    [hourly] = read_schedules(inline.settings)
    declare_schedules(inline.database, [hourly])
    past = datetime.now(UTC) - timedelta(milliseconds=10)
    inline.database.write(lambda c: c.execute(sa.update(schedules).values(next_at=past, due_at=past)))
    monitors = CronMonitors(inline.database, Settings())
    monitors.run_once()
    assert not fire(inline.database, hourly, fired=monitors.follow)
    if restarted:
        monitors = CronMonitors(inline.database, Settings())
    monitors.run_once()
    job_id = inline.database.read(lambda c: c.scalar(sa.select(jobs.c.id)))
    with inline:  # only now: its own dispatcher fires what is due, too

        def has_ended() -> bool:
            monitors.run_once()
            statuses = [item["status"] for item in caught if item["item"] == "check_in"]
            states = inline.database.read(lambda c: c.execute(sa.select(jobs.c.id, jobs.c.state)).all())
            assert status in statuses, f"{statuses} of {job_id} among {states}"
            return True

        until(has_ended, "the check-in")
        check_ins = [item for item in caught if item["item"] == "check_in"]
        assert {item["check_in_id"] for item in check_ins} == {str(job_id).replace("-", "")}
        assert {item["status"] for item in check_ins} <= {"in_progress", status}
        monitors.run_once()
        assert len([item for item in caught if item["item"] == "check_in"]) == len(check_ins), "once"


def test_schedules_are_no_monitors_if_the_setting_says_so(caught: list[dict[str, Any]]) -> None:
    with Inline(queues=["monitored"]) as inline:
        monitors = CronMonitors(inline.database, Settings(sentry=SentrySettings(schedules=False)))
        monitors.follow("hourly", "01a22770-1a31-7d45-87f4-84b31533eda5")
        assert not monitors.run_once()
        assert caught == []


@pytest.mark.parametrize(
    ("retries", "levels"), [("warning", {"warning", "error"}), ("error", {"error"}), ("off", set())]
)
def test_the_level_of_retries_is_a_setting(caught: list[dict[str, Any]], retries: Any, levels: set[str]) -> None:
    sentry = Sentry(Settings(sentry=SentrySettings(retries=retries)))
    sentry.report(FAILURE, None, None)
    assert {item["level"] for item in caught} == levels - ({"error"} if retries == "warning" else set())
    sentry.report(replace(FAILURE, outcome="dead", reason="failed"), None, None)
    assert caught[-1]["level"] == "error"
