"""A round of schedules: three dispatchers whose clocks are apart and which are killed, and the count of what fired."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from chaos_site import FOLDERS, HERE
from support.polling import SETTLE_SECONDS, until
from support.servers.databases import PostgresServer

from penstock.ledger.schedules import commands as acts
from penstock.ledger.schedules.rules import schedule_of_row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, jobs, schedules
from penstock.ledger.sql.upgrade import upgrade
from penstock.schemas import Job
from penstock.workers.local.up.redis_server import RedisServer

PENSTOCK = Path(sys.executable).parent / "penstock"
SHIFTS = (-2, 0, 2)
"""By how many seconds the clock of each dispatcher is off."""


class Fired(Job, kind="chaos.fired", queue="chaos-schedules"):
    schedule: str
    time: datetime


@dataclass
class ScheduleReport:
    firings: int = 0
    kills: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            f"  {self.firings:,} firings, {self.kills} dispatchers killed",
            *(f"  {fault}" for fault in self.faults),
        ]


class _Dispatchers:
    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, os.environ | environment
        self._running: list[subprocess.Popen[bytes] | None] = [None] * len(SHIFTS)
        self.started = 0

    def start(self, slot: int) -> None:
        self.started += 1
        command = [PENSTOCK, "dispatcher", "--import", "chaos_schedules", "--log-level", "WARNING"]
        with (self._folder / f"dispatcher-{slot}-{self.started}.log").open("wb") as log:
            self._running[slot] = subprocess.Popen(
                command, cwd=self._folder, env=self._environment | clock_off_by(SHIFTS[slot]), stdout=log, stderr=log
            )

    def kill(self, slot: int) -> None:
        process = self._running[slot]
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self._running:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def clock_off_by(seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is off; nothing where libfaketime is not installed."""
    libraries = [
        *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
        *Path("/usr/lib").glob("faketime/libfaketimeMT*"),
    ]
    if not libraries or seconds == 0:
        return {}
    return {"LD_PRELOAD": str(libraries[0]), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def one_schedule_round(
    seed: int, jobs_asked: int, folder: Path, *, database: str = "sqlite", ledger_url: str | None = None
) -> ScheduleReport:
    """A round with a Redis of its own.

    Arguments:
        jobs_asked: of a round of a pair; here there are a fifth as many firings.
        database, ledger_url: as for a round of a pair; nothing of it is killed here.
    """
    began = time.monotonic()
    with ExitStack() as opened:
        broker = RedisServer(folder / "redis")
        opened.callback(broker.stop)
        broker.start()
        if ledger_url is None and database == "postgres":
            postgres = PostgresServer()
            opened.callback(postgres.close)
            postgres.start()
            ledger_url = postgres.url
        url = ledger_url or f"sqlite:///{folder}/ledger.db"
        count = jobs_asked // 5
        report = schedule_round(
            folder, seed, count=count, database_url=url, broker_url=broker.url, prefix="chaos", kills=count // 100
        )
    report.seconds = time.monotonic() - began
    return report


def schedule_round(
    folder: Path,
    seed: int,
    *,
    count: int,
    database_url: str,
    broker_url: str,
    prefix: str,
    each: int = 20,
    kills: int = 4,
) -> ScheduleReport:
    """Let schedules fire `count` times in all while dispatchers are killed, repair everything, and audit the firings.

    Arguments:
        each: schedules; every one fires each second.
        kills: dispatchers to kill at least.
    """
    report, draw = ScheduleReport(), random.Random(seed)
    database = Database(database_url)
    upgrade(database)
    dispatchers = _Dispatchers(
        folder,
        {
            "PENSTOCK_DATABASE_URL": database_url,
            "PENSTOCK_BROKER_URL": broker_url,
            "PENSTOCK_PREFIX": prefix,
            "PENSTOCK_STOCK_QUEUES": json.dumps([]),
            "PYTHONPATH": os.pathsep.join(map(str, (*FOLDERS, HERE.parent))),
        },
    )
    try:
        for number in range(each):
            acts.add(database, f"s{number}", _settings(number), actor="chaos")
        first = {name: row.next_at for name, row in acts.recorded_schedules(database).items()}
        for slot in range(len(SHIFTS)):
            dispatchers.start(slot)
        # Dispatchers start in a second or two; killing them before that would say little.
        until(lambda: _count(database) > 0, "the first firing", SETTLE_SECONDS)
        deadline = time.monotonic() + SETTLE_SECONDS + count / each * 5
        while _count(database) < count or report.kills < kills:
            if time.monotonic() > deadline:
                report.faults.append(f"only {_count(database)} of {count} firings")
                break
            slot = draw.randrange(len(SHIFTS))
            dispatchers.kill(slot)
            report.kills += 1
            time.sleep(draw.uniform(0.0, 1.0))
            dispatchers.start(slot)
            time.sleep(draw.uniform(1.0, 4.0))
        end = database.read(lambda connection: connection.execute(sa.select(from_now())).scalar_one())
        behind = sa.select(sa.func.count()).where(schedules.c.next_at <= end)
        until(
            lambda: not database.read(lambda connection: connection.execute(behind).scalar_one()),
            "every firing that is due",
            SETTLE_SECONDS,
        )
    finally:
        dispatchers.stop()
    _audit(database, first, end, report)
    database.close()
    return report


def _settings(number: int) -> dict[str, Any]:
    when = {"cron": "* * * * * *"} if number % 2 else {"every": "1s"}
    return {
        "kind": "chaos.fired",
        "payload": {"schedule": f"s{number}"},
        "time_field": "time",
        "overlap": "allow",
        "misfire": "all",
        **when,
    }


def _audit(database: Database, first: dict[str, datetime], until: datetime, report: ScheduleReport) -> None:
    def read_all(connection: sa.Connection) -> tuple[list[Any], list[Any], list[Any]]:
        selects = (sa.select(schedules), sa.select(firings), sa.select(jobs.c.id, jobs.c.payload))
        rows, fired, sent = (list(connection.execute(select)) for select in selects)
        return rows, fired, sent

    rows, fired, sent = database.read(read_all)
    report.firings = len(fired)
    times: dict[str, list[datetime]] = defaultdict(list)
    for firing in fired:
        times[firing.schedule].append(firing.fire_at)
        if firing.job_id is None:
            report.faults.append(f"{firing.schedule}: no job for {firing.fire_at}: {firing.skipped}")
    for row in rows:
        rule = schedule_of_row(row).times
        assert rule is not None
        expected = set(rule.until(first[row.name] - timedelta(seconds=1), until))
        if missing := expected - set(times[row.name]):
            report.faults.append(f"{row.name}: {len(missing)} of {len(expected)} missing, such as {min(missing)}")
        if strange := set(times[row.name]) - set(rule.until(first[row.name] - timedelta(seconds=1), until + DAY)):
            report.faults.append(f"{row.name}: {len(strange)} that are not times of it, such as {min(strange)}")
    payloads = Counter(_about(json.loads(job.payload)) for job in sent)
    if double := [about for about, number in payloads.items() if number > 1]:
        report.faults.append(f"{len(double)} times have more than one job, such as {double[0]}")
    if {job.id for job in sent} != {firing.job_id for firing in fired}:
        report.faults.append(f"{len(sent)} jobs for {len(fired)} firings")
    if early := [firing for firing in fired if firing.fired_at < firing.fire_at]:
        report.faults.append(f"{len(early)} fired before their time, such as {early[0].schedule} {early[0].fire_at}")


DAY = timedelta(days=1)


def _about(payload: dict[str, Any]) -> tuple[str, datetime]:
    return payload["schedule"], datetime.fromisoformat(payload["time"]).astimezone(UTC)


def _count(database: Database) -> int:
    select = sa.select(sa.func.count()).select_from(firings)
    return int(database.read(lambda connection: connection.execute(select).scalar_one()))
