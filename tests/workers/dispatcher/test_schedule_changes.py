"""Schedules that people, the code or the file change."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.ledgers import set_up
from support.polling import until
from workers.dispatcher.schedule_rules import HOURLY, fired, full_hour, job_ids, overdue, rules, tick

from penstock.config.errors import ConfigError, InvalidState, ScheduleNotFound
from penstock.config.settings import Settings, load_settings
from penstock.ledger.schedules import commands as acts
from penstock.ledger.schedules.commands import recorded_schedules
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.schedules.firing import fire
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings, schedules
from penstock.schemas.schedules import computed
from penstock.schemas.schedules.decorator import ScheduleDeclaration, declarations
from penstock.workers.dispatcher.schedules.service import Schedules


@pytest.fixture
def sqlite_ledger(sqlite_url: str) -> Iterator[Database]:
    database = Database(set_up(sqlite_url))
    yield database
    database.close()


def test_a_paused_schedule_makes_no_jobs_and_goes_on_from_now(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(ledger, [rule])
    acts.pause(ledger, "hourly", actor="test")
    overdue(ledger, "hourly", hours=3)
    fire(ledger, rule)
    declare_schedules(ledger, [rule])  # a dispatcher that starts does not wake it
    declare_schedules(ledger, rules(hourly=HOURLY | {"cron": "5 * * * *"}))
    row = recorded_schedules(ledger)["hourly"]
    assert (fired(ledger), row.due_at, row.paused_at is not None) == ([], None, True)
    with pytest.raises(InvalidState, match="is paused since"):
        acts.pause(ledger, "hourly", actor="test")
    next_at = acts.resume(ledger, "hourly", actor="test")
    row = recorded_schedules(ledger)["hourly"]
    assert next_at == row.next_at == row.due_at
    assert (row.next_at > datetime.now(UTC), row.next_at.minute, row.paused_at) == (True, 5, None)
    with pytest.raises(InvalidState, match="is not paused"):
        acts.resume(ledger, "hourly", actor="test")


def test_computed_times_may_be_registered_after_the_start(
    sqlite_ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, compute = "each hour of a test", lambda after: full_hour(after) + timedelta(hours=1)
    monkeypatch.setattr(computed, "_computed", {name: compute})
    acts.add(sqlite_ledger, "late", HOURLY | {"cron": None, "times": name}, actor="test")
    time = overdue(sqlite_ledger, "late", hours=2)
    monkeypatch.setattr(computed, "_computed", {})
    service = Schedules(sqlite_ledger, Settings())
    for _ in range(2):
        service.run_once()
    assert (fired(sqlite_ledger), recorded_schedules(sqlite_ledger)["late"].next_at) == ([], time)
    computed.register_times(name, compute)
    monkeypatch.setitem(declarations, "other", ScheduleDeclaration("other", "of.a.test", "here", HOURLY))
    until(lambda: service.run_once() or fired(sqlite_ledger))
    assert recorded_schedules(sqlite_ledger)["late"].next_at > datetime.now(UTC)


def test_a_run_now_counts_as_the_last_job(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(ledger, [rule])
    before = recorded_schedules(ledger)["hourly"]
    job_id = acts.run(ledger, "hourly", actor="test")
    row = recorded_schedules(ledger)["hourly"]
    assert (row.last_job_id, row.next_at) == (job_id, before.next_at)
    assert tick(ledger, rule).skipped == "overlap"
    assert sorted(entry.cause for entry in fired(ledger)) == ["run", "time"]
    with pytest.raises(ScheduleNotFound):
        acts.run(ledger, "none", actor="test")


def test_a_backfill_makes_what_is_missing_and_nothing_twice(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(ledger, [rule])
    [fired_jobs, _] = (tick(ledger, rule) for _ in range(2))
    last = full_hour(datetime.now(UTC))
    begin = last - timedelta(hours=1200)
    ledger.write(lambda connection: connection.execute(sa.delete(firings)))
    ledger.write(
        lambda connection: connection.execute(
            sa.insert(firings),
            [
                {"schedule": "hourly", "fire_at": last - timedelta(hours=hours), "job_id": job_id, "fired_at": last,
                 "skipped": why}
                for hours, job_id, why in ((3, fired_jobs.job_id, None), (2, None, "overlap"))
            ],
        )
    )  # fmt: skip
    done = acts.backfill(ledger, "hourly", begin, last, actor="test")
    assert [firing.time for firing in done] == [begin + timedelta(hours=hours) for hours in range(1200)]
    assert [firing.skipped for firing in done].count(None) == 1199
    assert (done[-3].job_id, done[-3].skipped) == (fired_jobs.job_id, "fired")
    assert len(job_ids(ledger)) == 1200
    assert {firing.skipped for firing in acts.backfill(ledger, "hourly", begin, last, actor="test")} == {"fired"}
    assert len(job_ids(ledger)) == 1200
    assert [entry.skipped for entry in fired(ledger)] == [None] * 1200


def test_a_schedule_made_at_run_time_fires_and_stays(ledger: Database) -> None:
    rule = acts.add(ledger, "made", HOURLY, actor="test")
    with pytest.raises(InvalidState, match="there is a schedule 'made' already"):
        acts.add(ledger, "made", HOURLY, actor="test")
    with pytest.raises(ConfigError, match=r"schedule 'wrong': .*bad minute"):
        acts.add(ledger, "wrong", HOURLY | {"cron": "99 * * * *"}, actor="test")
    declare_schedules(ledger, [])
    assert tick(ledger, rule).job_id in job_ids(ledger)
    # The file takes its name over.
    declare_schedules(ledger, rules(made=HOURLY | {"cron": "30 * * * *"}))
    row = recorded_schedules(ledger)["made"]
    assert (row.source, row.next_at.minute) == ("file", 30)
    with pytest.raises(InvalidState, match=r"stands in penstock\.toml"):
        acts.remove(ledger, "made", actor="test")
    declare_schedules(ledger, [])
    assert recorded_schedules(ledger) == {}


def test_a_schedule_of_the_code_is_removed_only_when_its_module_has_dropped_it(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module in (("here", __name__), ("elsewhere", "no.such.module")):
        monkeypatch.setitem(declarations, name, ScheduleDeclaration(name, module, f"{__file__}:1", HOURLY))
    both = rules()
    assert [(rule.name, rule.source) for rule in both] == [("elsewhere", "code"), ("here", "code")]
    declare_schedules(ledger, both)
    declare_schedules(ledger, [])
    assert list(recorded_schedules(ledger)) == ["elsewhere"]
    acts.remove(ledger, "elsewhere", actor="test")
    # The file has the last word about a name that both have.
    [here] = [rule for rule in rules(here=HOURLY | {"cron": "@daily"}) if rule.name == "here"]
    assert (here.source, here.settings and here.settings.cron) == ("file", "@daily")


def test_a_kind_that_is_not_imported_here_is_left_to_other_dispatchers(ledger: Database) -> None:
    [rule] = rules(a=HOURLY)
    declare_schedules(ledger, [rule])
    time = overdue(ledger, "a")
    ledger.write(
        lambda connection: connection.execute(sa.update(schedules).values(rule=rule.rule.replace("note", "no")))
    )
    service = Schedules(ledger, Settings())
    service._is_declared = True
    assert not service.run_once()
    assert (fired(ledger), recorded_schedules(ledger)["a"].due_at) == ([], time)


def test_a_change_of_the_file_takes_effect_without_a_restart(sqlite_ledger: Database, tmp_path: Path) -> None:
    ledger, file = sqlite_ledger, tmp_path / "penstock.toml"
    often = 'kind = "ledger.note"\ncron = "* * * * * *"\noverlap = "allow"\n'

    def count(name: str) -> int:
        return sum(entry.schedule == name for entry in fired(ledger))

    file.write_text(f"[schedules.a]\n{often}")
    service = Schedules(ledger, load_settings(file))
    service.start()
    try:
        until(lambda: count("a") >= 1)
        file.write_text(f"[schedules.b]\n{often}[schedules.bad]\nkind = 3\n")
        until(lambda: count("b") >= 2)
        assert list(recorded_schedules(ledger)) == ["b", "bad"]
        # A file that cannot be read as a whole changes nothing.
        file.write_text("[schedules.c\n")
        seen = count("b")
        until(lambda: count("b") >= seen + 2)
        file.unlink()
        file.write_text(f"[schedules.c]\n{often}")
        until(lambda: count("c") >= 1)
        acts.add(ledger, "made", {"kind": "ledger.note", "every": "1s", "overlap": "allow"}, actor="test")
        until(lambda: count("made") >= 2)
    finally:
        service.stop()
        assert service.join(60)
    times = [entry.fire_at for entry in fired(ledger) if entry.schedule == "c"]
    assert times == sorted(set(times))
    assert all(time.microsecond == 0 for time in times)
