"""The tables of django-celery-beat: a dispatcher fires their entries, and follows what is changed in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.polling import until
from support.servers.shared import delete_queues
from support.stack import Stack

from penstock.ledger.schedules.commands import recorded_schedules
from penstock.ledger.sql.tables import firings, jobs
from penstock.workers.local.up.redis_server import RedisServer

pytest.importorskip("django_celery_beat", reason="django-celery-beat is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SETUP = """
from datetime import timedelta
from zoneinfo import ZoneInfo
from django.core.management import call_command
from django.utils.timezone import now
from django_celery_beat.models import *
from beat_shop import app

def entry(name, **values):
    return PeriodicTask.objects.create(**{"name": name, "task": "shop.note", "args": '["tick"]'} | values)

def interval(every, period):
    return IntervalSchedule.objects.get_or_create(every=every, period=period)[0]

def clocked(time):
    return ClockedSchedule.objects.get_or_create(clocked_time=time)[0]

def cron(**values):
    return CrontabSchedule.objects.create(timezone=ZoneInfo("America/New_York"), **values)
"""

ENTRIES = """
call_command("migrate", verbosity=0)
entry("often", interval=interval(500_000, "microseconds"), kwargs='{"copies": 2}', queue="others", expire_seconds=3600)
entry("soon", clocked=clocked(now() + timedelta(seconds=3)), one_off=True)
entry("past", clocked=clocked(now() - timedelta(hours=1)), one_off=True)
entry("single", interval=interval(1, "seconds"), one_off=True)
entry("nightly", crontab=cron(minute="30", hour="2"), priority=3, expires=now() + timedelta(days=30))
entry("later", interval=interval(1, "seconds"), start_time=now() + timedelta(days=2))
entry("friday", crontab=cron(minute="0", hour="9", day_of_month="13", day_of_week="fri"))
entry("evening", solar=SolarSchedule.objects.create(event="sunset", latitude=52.52, longitude=13.405))
entry("off", interval=interval(1, "seconds"), enabled=False)
entry("lost", interval=interval(1, "seconds"), task="shop.gone")
entry("odd", interval=interval(1, "seconds"), args='["x"')
"""


class Tables:
    """The application's database, changed as its web process would.

    Attributes:
        folder: the database's, which may be renamed for an outage.
    """

    def __init__(self, stack: Stack, folder: Path, queue: str) -> None:
        self.stack, self.folder, self.queue = stack, folder, queue
        folder.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        return {"BEAT_SHOP_DATABASE": str(self.folder / "shop.db"), "BEAT_SHOP_QUEUE": self.queue, "PYTHONPATH": path}

    def run(self, code: str) -> str:
        environment = os.environ | {"PENSTOCK_BROKER_URL": self.stack.broker_url} | self.environment
        command = [sys.executable, "-c", "import beat_shop\n" + SETUP + code]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def start_dispatcher(self) -> Any:
        return self.stack.run(["dispatcher", "--celery", "beat_shop:app"], **self.environment)

    def log(self) -> str:
        """All that dispatchers have logged."""
        return "\n".join(file.read_text() for file in self.stack.folder.glob("dispatcher-*.log"))

    def schedules(self) -> dict[str, Any]:
        return recorded_schedules(self.stack.database)

    def fired(self, name: str) -> list[Any]:
        select = sa.select(firings).where(firings.c.schedule == name, firings.c.job_id.is_not(None))
        return list(self.stack.database.read(lambda connection: connection.execute(select).all()))


@pytest.fixture
def tables(redis_server: RedisServer, prefix: str, tmp_path: Path) -> Iterator[Tables]:
    stack = Stack("celery", redis_server.url, prefix, tmp_path)
    yield Tables(stack, tmp_path / "shop", f"{prefix}-celery")
    stack.stop()
    print(stack.logs())
    delete_queues("redis", prefix)


def test_entries_fire_once_and_their_changes_are_followed(tables: Tables) -> None:
    tables.run(ENTRIES)
    tables.start_dispatcher()
    tables.start_dispatcher()
    until(lambda: len(tables.fired("often")) >= 6 and all(map(tables.fired, ("soon", "past", "single"))))
    schedules = tables.schedules()
    rules = {name: json.loads(row.rule) for name, row in schedules.items()}
    assert not {"off", "lost", "odd"} & rules.keys()
    assert rules["nightly"] | {"payload": None, "until": None} == {
        "kind": "shop.note",
        "cron": "30 2 * * *",
        "timezone": "America/New_York",
        "overlap": "allow",
        "priority": "low",
        "payload": None,
        "until": None,
    }
    assert rules["of the code"]["cron"] == "0 3 * * *"
    assert schedules["later"].next_at > schedules["often"].next_at + timedelta(days=1)
    friday, evening = schedules["friday"].next_at, schedules["evening"].next_at
    assert (friday.day, friday.weekday(), friday.hour in (13, 14)) == (13, 4, True)  # UTC
    assert 13 <= evening.hour <= 20
    # The jobs are those that celery beat would send.
    often = tables.fired("often")
    assert len({row.fire_at for row in often}) == len({row.job_id for row in often}) == len(often)
    job = tables.stack.row(often[0].job_id)
    assert (job.queue, job.expires_at - job.enqueued_at) == ("others", timedelta(hours=1))
    payload = job.payload if isinstance(job.payload, dict) else json.loads(job.payload)
    assert (payload["args"], payload["kwargs"]) == (["tick"], {"copies": 2})
    # What fires once is disabled in the tables, and what fires has its last time there.
    disabled = "print([PeriodicTask.objects.get(name=n).enabled for n in ('soon', 'past', 'single', 'often')])"
    until(lambda: tables.run(disabled) == "[False, False, False, True]\n")
    assert tables.run("print(PeriodicTask.objects.get(name='often').last_run_at is not None)") == "True\n"
    until(lambda: not {"soon", "past", "single"} & tables.schedules().keys())
    assert [len(tables.fired(name)) for name in ("soon", "past", "single")] == [1, 1, 1]
    # A change needs no restart.
    tables.run(
        "t = PeriodicTask.objects.get(name='often'); t.enabled = False; t.save()\n"
        "entry('new', interval=interval(1, 'seconds'))\n"
        "PeriodicTask.objects.filter(name='evening').get().delete()\n"
    )
    until(lambda: not {"often", "evening"} & tables.schedules().keys() and tables.fired("new"))
    # Their database is unavailable: what was read goes on, also in a dispatcher that has just started.
    gone = tables.folder.with_name("gone")
    os.replace(tables.folder, gone)
    until(lambda: tables.log().count("the tables cannot be read") == 2)
    tables.start_dispatcher()
    until(lambda: tables.log().count("the tables cannot be read") == 3)
    before = len(tables.fired("new"))
    until(lambda: len(tables.fired("new")) > before)
    assert {"new", "nightly", "later", "of the code"} <= tables.schedules().keys()
    os.replace(gone, tables.folder)
    until(lambda: tables.log().count("the tables can be read again") == 3)
    text = tables.log()
    for line in ("entry 'lost' is left out: the application has no task 'shop.gone'", "entry 'odd' is left out"):
        assert text.count(line) == 3, text
    assert tables.stack.database.read(lambda c: c.scalar(sa.select(sa.func.count()).select_from(jobs))) > 0
