"""Schedules fire: on time, once, with missed times, and depending on the last job."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.ledgers import Note, claimed, end, row_of
from workers.dispatcher.schedule_rules import HOURLY, fired, full_hour, job_ids, overdue, rules, tick

from penstock.config.settings import Settings, load_settings
from penstock.ledger.schedules import commands as acts
from penstock.ledger.schedules.commands import recorded_schedules
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.schedules.firing import fire, release_waiting, waiting_schedules
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import schedules, workflows
from penstock.ledger.transitions.due import envelope_of
from penstock.ledger.workflows import record
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import decode
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.dispatcher.schedules.service import Schedules


class Daily(Job, kind="ledger.daily", queue="notes"):
    day: date | None = None
    moment: datetime | None = None


DAILY = {"kind": "ledger.daily", "cron": "0 0 * * *"}


def test_a_new_schedule_starts_with_its_next_time_and_fires_when_that_comes(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(ledger, [rule])
    assert recorded_schedules(ledger)["hourly"].next_at == full_hour(datetime.now(UTC)) + timedelta(hours=1)
    assert not fire(ledger, rule)
    assert fired(ledger) == []
    time = overdue(ledger, "hourly")
    fire(ledger, rule)
    [entry] = fired(ledger)
    row, schedule = row_of(ledger, entry.job_id), recorded_schedules(ledger)["hourly"]
    assert (entry.fire_at, entry.skipped, row.state, row.queue) == (time, None, State.SCHEDULED, "notes")
    assert (schedule.last_at, schedule.last_job_id) == (time, entry.job_id)
    assert schedule.next_at > datetime.now(UTC)
    assert decode(envelope_of(row)).job == Note(text="tick")


def test_the_error_of_a_wrong_schedule_is_recorded_and_the_others_go_on(
    ledger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(
        '[schedules.good]\nkind = "ledger.note"\ncron = "0 * * * *"\n'
        '[schedules.nobody]\nkind = "no.such"\ncron = "0 * * * *"\n'
        '[schedules.payload]\nkind = "ledger.login"\ncron = "0 * * * *"\npayload = { password = "s3cret" }\n'
        '[schedules.rule]\nkind = "ledger.note"\ncron = "99 * * * *"\n'
        '[schedules.zone]\nkind = "ledger.note"\ncron = "0 * * * *"\ntimezone = "Mars/Base"\n'
        '[schedules.never]\nkind = "ledger.note"\ncron = "0 0 25 12 *"\ncalendar = "DE"\nclosed = "skip"\n'
        '[schedules.field]\nkind = "ledger.note"\ncron = "0 * * * *"\ntime_field = "when"\n'
    )
    monkeypatch.setenv("PENSTOCK_CONFIG", str(file))
    read = read_schedules(load_settings())
    declare_schedules(ledger, read)
    kept = recorded_schedules(ledger)
    assert kept["good"].error is None
    assert kept["good"].next_at is not None
    assert f"{file}:5" in kept["nobody"].error
    assert "no.such" in kept["nobody"].error
    assert f"{file}:10" in kept["payload"].error
    assert "user: Field required" in kept["payload"].error
    assert "s3cret" not in kept["payload"].error
    assert f"{file}:13" in kept["rule"].error
    assert f"{file}:17: schedule 'zone': timezone: unknown time zone" in kept["zone"].error
    assert f"{file}:20: schedule 'never'" in kept["never"].error
    assert "never fires" in kept["never"].error
    assert f"{file}:26" in kept["field"].error
    assert "has no field 'when'" in kept["field"].error
    wrong = ("nobody", "payload", "rule", "zone", "never", "field")
    assert [(kept[name].next_at, kept[name].due_at) for name in wrong] == [(None, None)] * 6


def test_a_name_that_the_ledger_cannot_keep_does_not_stop_the_others(ledger: Database) -> None:
    names = ("x" * 129, " ", "a\0b", "good")
    read = rules(**dict.fromkeys(names, HOURLY))
    assert {rule.name for rule in read if rule.error and "a name has 1 to 128" in rule.error} == set(names[:3])
    declare_schedules(ledger, read)
    assert list(recorded_schedules(ledger)) == ["good"]


def test_a_schedule_that_left_the_file_is_removed_and_a_changed_one_starts_again(ledger: Database) -> None:
    declare_schedules(ledger, rules(a=HOURLY, b=HOURLY))
    overdue(ledger, "a", hours=5)
    late = overdue(ledger, "b", hours=5)
    declare_schedules(ledger, rules(a=HOURLY | {"cron": "30 * * * *"}, b=HOURLY))
    assert recorded_schedules(ledger)["a"].next_at > datetime.now(UTC)
    assert recorded_schedules(ledger)["b"].next_at == late
    declare_schedules(ledger, rules(b=HOURLY))
    assert list(recorded_schedules(ledger)) == ["b"]


def test_an_only_time_that_has_passed_fires_once_within_catch_up(ledger: Database) -> None:
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    single = {"kind": "ledger.note", "payload": {"text": "once"}, "at": at}
    options = {"queue": "others", "priority": "low", "expires_in": "2h"}
    declared = rules(never=single, late=single | options | {"catch_up": "2h"}, older=single | {"catch_up": "30m"})
    for _ in range(2):  # the second time as a dispatcher that starts later
        declare_schedules(ledger, declared)
        fire(ledger, *declared)
    [entry] = fired(ledger)
    row = row_of(ledger, entry.job_id)
    assert (entry.schedule, entry.fire_at, row.queue, row.priority) == ("late", at, "others", "low")
    assert row.expires_at - row.enqueued_at == timedelta(hours=2)
    assert recorded_schedules(ledger)["late"].next_at is None


def test_a_dispatcher_with_an_older_file_does_not_fire_what_has_changed(ledger: Database) -> None:
    [old] = rules(a=HOURLY)
    declare_schedules(ledger, [old])
    declare_schedules(ledger, rules(a=HOURLY | {"timezone": "Europe/Berlin"}))
    overdue(ledger, "a")
    fire(ledger, old)
    assert fired(ledger) == []


def test_missed_times_are_made_up_for_by_one_job_by_default(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(ledger, [rule])
    overdue(ledger, "hourly", days=9)
    assert not fire(ledger, rule)
    [entry] = fired(ledger)
    assert entry.fire_at == full_hour(entry.fired_at)
    assert recorded_schedules(ledger)["hourly"].next_at == entry.fire_at + timedelta(hours=1)


def test_missed_times_are_dropped_with_skip(ledger: Database) -> None:
    [rule] = rules(yearly=HOURLY | {"cron": "0 0 1 1 *", "misfire": "skip"})
    declare_schedules(ledger, [rule])
    overdue(ledger, "yearly", hours=5)
    assert not fire(ledger, rule)
    assert fired(ledger) == []
    assert recorded_schedules(ledger)["yearly"].next_at > datetime.now(UTC)
    # A time that has just come is not missed.
    overdue(ledger, "yearly")
    fire(ledger, rule)
    assert len(fired(ledger)) == 1


def test_misfire_all_makes_a_job_for_each_missed_time(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"misfire": "all", "overlap": "allow"})
    declare_schedules(ledger, [rule])
    first = overdue(ledger, "hourly", hours=5)
    fire(ledger, rule)
    entries = fired(ledger)
    assert [entry.fire_at for entry in entries] == [first + timedelta(hours=number) for number in range(len(entries))]
    assert len(entries) in (6, 7)  # the hour may turn while this runs
    assert len({entry.job_id for entry in entries}) == len(entries) == len(job_ids(ledger))


def test_misfire_all_spreads_many_missed_times_over_several_rounds(ledger: Database) -> None:
    [rule] = rules(often=HOURLY | {"cron": "* * * * *", "misfire": "all", "overlap": "allow"})
    declare_schedules(ledger, [rule])
    first = overdue(ledger, "often", hours=10)
    rounds = 1
    while fire(ledger, rule):
        rounds += 1
    times = [entry.fire_at for entry in fired(ledger)]
    assert rounds > 1
    assert times == [first + timedelta(minutes=number) for number in range(len(times))]
    assert datetime.now(UTC) - times[-1] < timedelta(minutes=2)


def test_missed_times_of_many_schedules_are_made_up_for_in_rounds(ledger: Database) -> None:
    often = HOURLY | {"cron": "* * * * *", "misfire": "all", "overlap": "allow"}
    three = rules(**dict.fromkeys("abc", often))
    declare_schedules(ledger, three)
    first = {rule.name: overdue(ledger, rule.name, hours=10) for rule in three}
    assert fire(ledger, *three)
    assert 1000 <= len(fired(ledger)) <= 1500
    while fire(ledger, *three):
        pass
    for name, begin in first.items():
        times = [entry.fire_at for entry in fired(ledger) if entry.schedule == name]
        assert times == [begin + timedelta(minutes=number) for number in range(len(times))]
        assert recorded_schedules(ledger)[name].next_at > datetime.now(UTC) - timedelta(minutes=1)


def test_overlap_skip_skips_a_time_while_the_last_job_is_unfinished(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(ledger, [rule])
    for _ in range(2):
        overdue(ledger, "hourly")
        fire(ledger, rule)
    first, second = fired(ledger)
    assert (second.job_id, second.skipped) == (None, "overlap")
    claim = claimed(ledger, decode(envelope_of(row_of(ledger, first.job_id))))
    end(ledger, claim, Outcome.SUCCEEDED)
    overdue(ledger, "hourly")
    fire(ledger, rule)
    assert fired(ledger)[-1].skipped is None
    assert len(job_ids(ledger)) == 2


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_last_job_that_is_a_resting_workflow_does_not_stop_its_schedule(ledger: Database, overlap: str) -> None:
    [rule] = rules(hourly=HOURLY | {"overlap": overlap})
    declare_schedules(ledger, [rule])
    first = tick(ledger, rule)
    row = {"id": first.job_id, "kind": "ledger.note", "state": "running", "definition": "", "graph": "{}"}
    row |= {"started_at": datetime.now(UTC), "undo": True}
    ledger.write(lambda connection: connection.execute(sa.insert(workflows).values(**row)))
    assert tick(ledger, rule).job_id is None
    ledger.write(lambda connection: record.note_rest(connection, first.job_id, "rests: its code was changed"))
    assert waiting_schedules(ledger) == (["hourly"] if overlap == "queue" else [])
    assert len(job_ids(ledger)) == 1
    tick(ledger, rule)
    assert len(job_ids(ledger)) == 2


def test_overlap_replace_cancels_the_last_job(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"overlap": "replace"})
    declare_schedules(ledger, [rule])
    for _ in range(3):
        overdue(ledger, "hourly")
        fire(ledger, rule)
    assert [row_of(ledger, entry.job_id).state for entry in fired(ledger)] == ["cancelled", "cancelled", "scheduled"]


def test_several_dispatchers_fire_a_time_once(ledger_url: str) -> None:
    database = Database(ledger_url)
    read = rules(**{f"s{number}": HOURLY | {"overlap": "allow"} for number in range(5)})
    declare_schedules(database, read)
    for rule in read:
        overdue(database, rule.name, hours=2)
    errors: list[Exception] = []
    start = threading.Barrier(3)

    def dispatch() -> None:
        own = Database(ledger_url)
        try:
            declare_schedules(own, read)
            start.wait()
            for _ in range(5):
                for rule in read:
                    fire(own, rule)
        except Exception as error:
            errors.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=dispatch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    entries = fired(database)
    times = {(entry.schedule, entry.fire_at) for entry in entries}
    assert len(times) == len(entries) == len(job_ids(database))
    assert {entry.schedule for entry in entries} == {rule.name for rule in read}
    assert all(entry.skipped is None for entry in entries)
    database.close()


def finish(ledger: Database, job_id: str) -> None:
    end(ledger, claimed(ledger, decode(envelope_of(row_of(ledger, job_id)))), Outcome.SUCCEEDED)


def test_overlap_queue_lets_one_job_wait_for_the_end_of_the_last(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"overlap": "queue"})
    declare_schedules(ledger, [rule])
    first, second, third = (tick(ledger, rule) for _ in range(3))
    assert (first.skipped, second.skipped, third.skipped) == (None, "waits", "overlap")
    assert recorded_schedules(ledger)["hourly"].waiting_at == second.fire_at
    assert (waiting_schedules(ledger), len(job_ids(ledger))) == ([], 1)
    finish(ledger, first.job_id)
    assert waiting_schedules(ledger) == ["hourly"]
    for _ in range(2):
        release_waiting(ledger, ["hourly"], lambda row: rule)
    _, again, _ = fired(ledger)
    assert (again.fire_at, again.skipped) == (second.fire_at, None)
    assert job_ids(ledger) == [first.job_id, again.job_id]
    row = recorded_schedules(ledger)["hourly"]
    assert (row.waiting_at, row.last_job_id) == (None, again.job_id)
    # The next time finds it running; and a time that comes before anybody has looked lets the waiting one go first.
    fourth = tick(ledger, rule)
    assert fourth.skipped == "waits"
    finish(ledger, again.job_id)
    fifth = tick(ledger, rule)
    assert fifth.skipped == "waits"
    assert len(job_ids(ledger)) == 3
    assert recorded_schedules(ledger)["hourly"].waiting_at == fifth.fire_at


def test_overlap_replace_makes_one_job_of_several_missed_times(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"overlap": "replace", "misfire": "all"})
    declare_schedules(ledger, [rule])
    overdue(ledger, "hourly", hours=3)
    fire(ledger, rule)
    *skipped, last = fired(ledger)
    assert {entry.skipped for entry in skipped} == {"overlap"}
    assert job_ids(ledger) == [last.job_id]


def test_missed_times_older_than_the_catch_up_window_are_dropped(ledger: Database) -> None:
    [rule] = rules(daily=HOURLY | {"cron": "@yearly", "catch_up": "2h"})
    declare_schedules(ledger, [rule])
    overdue(ledger, "daily", hours=5)
    assert not fire(ledger, rule)
    assert (fired(ledger), recorded_schedules(ledger)["daily"].next_at > datetime.now(UTC)) == ([], True)


def test_jitter_puts_off_the_firing_and_not_the_time(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"jitter": "30m"})
    declare_schedules(ledger, [rule])
    assert timedelta() < rule.offset < timedelta(minutes=30)
    row = recorded_schedules(ledger)["hourly"]
    assert (row.next_at.minute, row.due_at - row.next_at) == (0, rule.offset)
    time = overdue(ledger, "hourly")
    fire(ledger, rule)
    assert fired(ledger) == []
    change = sa.update(schedules).values(next_at=time - rule.offset)
    ledger.write(lambda connection: connection.execute(change))
    fire(ledger, rule)
    assert [entry.fire_at for entry in fired(ledger)] == [time - rule.offset]


def test_the_time_a_job_is_for_goes_into_its_field(ledger: Database) -> None:
    [day, moment] = rules(
        day=DAILY | {"time_field": "day", "timezone": "Asia/Tokyo"}, moment=DAILY | {"time_field": "moment"}
    )
    declare_schedules(ledger, [day, moment])
    time = datetime(2026, 3, 20, 23, 30, tzinfo=UTC)
    for name in ("day", "moment"):
        acts.backfill(ledger, name, time - timedelta(days=1), time, actor="test")
    payloads = [decode(envelope_of(row_of(ledger, entry.job_id))).job for entry in fired(ledger)]
    assert payloads == [Daily(moment=datetime(2026, 3, 20, tzinfo=UTC)), Daily(day=date(2026, 3, 21))]


def test_schedules_are_fired_in_rounds_of_a_batch(ledger: Database) -> None:
    many = rules(**{f"s{number}": HOURLY for number in range(1100)})
    declare_schedules(ledger, many)
    now = datetime.now(UTC)
    ledger.write(lambda connection: connection.execute(sa.update(schedules).values(next_at=now, due_at=now)))
    service = Schedules(ledger, Settings())
    service._is_declared = True
    assert [service.run_once() for _ in range(3)] == [True, True, False]
    assert len(fired(ledger)) == len(job_ids(ledger)) == 1100
    assert {row.next_at for row in recorded_schedules(ledger).values()} == {full_hour(now) + timedelta(hours=1)}


def test_a_time_that_another_has_entered_is_not_fired_again(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"overlap": "allow"})
    declare_schedules(ledger, [rule])
    time = overdue(ledger, "hourly", hours=2)
    fire(ledger, rule)
    count = len(job_ids(ledger))
    # As if its row had been restored from a copy of before.
    change = sa.update(schedules).values(next_at=time, due_at=time)
    ledger.write(lambda connection: connection.execute(change))
    fire(ledger, rule)
    assert len(job_ids(ledger)) == len(fired(ledger)) == count
    assert recorded_schedules(ledger)["hourly"].next_at > datetime.now(UTC)
