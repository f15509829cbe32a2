from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ledgers import Note, claimed, end, row_of

from penstock.config.settings import ScheduleSettings, Settings
from penstock.schemas import Outcome, State
from penstock.schemas.database import Database
from penstock.schemas.tables import firings, jobs, schedules
from penstock.schemas.wire import decode
from penstock.workers.dispatcher.rules import Schedule, read_schedules
from penstock.workers.dispatcher.schedules import enter, fire, recorded
from penstock.workers.ledger.delays import envelope_of

HOURLY = {"kind": "ledger.note", "cron": "0 * * * *", "payload": {"text": "tick"}}


def rules(**definitions: dict[str, Any]) -> list[Schedule]:
    made = {name: ScheduleSettings(**definition) for name, definition in definitions.items()}
    return read_schedules(Settings(schedules=made))


def overdue(ledger: Database, name: str, **ago: float) -> datetime:
    """Put a schedule's next time into the past, to a full hour, and return it."""
    now = datetime.now(UTC)
    time = (now - timedelta(**ago)).replace(minute=0, second=0, microsecond=0) if ago else now
    ledger.write(
        lambda connection: connection.execute(sa.update(schedules).where(schedules.c.name == name).values(next_at=time))
    )
    return time


def fired(ledger: Database) -> list[Any]:
    return ledger.read(lambda connection: list(connection.execute(sa.select(firings).order_by(firings.c.fire_at))))


def job_ids(ledger: Database) -> list[str]:
    return ledger.read(lambda connection: list(connection.scalars(sa.select(jobs.c.id).order_by(jobs.c.id))))


def full_hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def test_a_new_schedule_starts_with_its_next_time_and_fires_when_that_comes(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    enter(ledger, [rule])
    assert recorded(ledger)["hourly"].next_at == full_hour(datetime.now(UTC)) + timedelta(hours=1)
    assert not fire(ledger, rule)
    assert fired(ledger) == []
    time = overdue(ledger, "hourly")
    fire(ledger, rule)
    [entry] = fired(ledger)
    row, schedule = row_of(ledger, entry.job_id), recorded(ledger)["hourly"]
    assert (entry.fire_at, entry.skipped, row.state, row.queue) == (time, None, State.SCHEDULED, "notes")
    assert (schedule.last_at, schedule.last_job_id) == (time, entry.job_id)
    assert schedule.next_at > datetime.now(UTC)
    assert decode(envelope_of(row)).job == Note(text="tick")


def test_what_is_wrong_with_a_schedule_is_kept_and_the_others_go_on(
    ledger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(
        '[schedules.good]\nkind = "ledger.note"\ncron = "0 * * * *"\n'
        '[schedules.nobody]\nkind = "no.such"\ncron = "0 * * * *"\n'
        '[schedules.payload]\nkind = "ledger.login"\ncron = "0 * * * *"\npayload = { password = "s3cret" }\n'
        '[schedules.rule]\nkind = "ledger.note"\ncron = "99 * * * *"\n'
    )
    monkeypatch.setenv("PENSTOCK_CONFIG", str(file))
    from penstock.config.settings import load_settings

    read = read_schedules(load_settings())
    enter(ledger, read)
    kept = recorded(ledger)
    assert kept["good"].error is None
    assert kept["good"].next_at is not None
    assert f"{file}:5" in kept["nobody"].error
    assert "no.such" in kept["nobody"].error
    assert f"{file}:10" in kept["payload"].error
    assert "user: Field required" in kept["payload"].error
    assert "s3cret" not in kept["payload"].error
    assert f"{file}:13" in kept["rule"].error
    assert [kept[name].next_at for name in ("nobody", "payload", "rule")] == [None] * 3


def test_a_schedule_that_left_the_file_is_removed_and_a_changed_one_starts_anew(ledger: Database) -> None:
    enter(ledger, rules(a=HOURLY, b=HOURLY))
    overdue(ledger, "a", hours=5)
    late = overdue(ledger, "b", hours=5)
    enter(ledger, rules(a=HOURLY | {"cron": "30 * * * *"}, b=HOURLY))
    assert recorded(ledger)["a"].next_at > datetime.now(UTC)
    assert recorded(ledger)["b"].next_at == late
    enter(ledger, rules(b=HOURLY))
    assert list(recorded(ledger)) == ["b"]


def test_a_dispatcher_with_an_older_file_does_not_fire_what_has_changed(ledger: Database) -> None:
    [old] = rules(a=HOURLY)
    enter(ledger, [old])
    enter(ledger, rules(a=HOURLY | {"timezone": "Europe/Berlin"}))
    overdue(ledger, "a")
    fire(ledger, old)
    assert fired(ledger) == []


def test_missed_times_are_made_up_for_by_one_job_by_default(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    enter(ledger, [rule])
    overdue(ledger, "hourly", days=9)
    assert not fire(ledger, rule)
    [entry] = fired(ledger)
    assert entry.fire_at == full_hour(entry.fired_at)
    assert recorded(ledger)["hourly"].next_at == entry.fire_at + timedelta(hours=1)


def test_missed_times_are_dropped_with_skip(ledger: Database) -> None:
    [rule] = rules(yearly=HOURLY | {"cron": "0 0 1 1 *", "misfire": "skip"})
    enter(ledger, [rule])
    overdue(ledger, "yearly", hours=5)
    assert not fire(ledger, rule)
    assert fired(ledger) == []
    assert recorded(ledger)["yearly"].next_at > datetime.now(UTC)
    # A time that has just come is not missed.
    overdue(ledger, "yearly")
    fire(ledger, rule)
    assert len(fired(ledger)) == 1


def test_each_missed_time_makes_a_job_with_all(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"misfire": "all", "overlap": "allow"})
    enter(ledger, [rule])
    first = overdue(ledger, "hourly", hours=5)
    fire(ledger, rule)
    entries = fired(ledger)
    assert [entry.fire_at for entry in entries] == [first + timedelta(hours=number) for number in range(len(entries))]
    assert len(entries) in (6, 7)  # the hour may turn while this runs
    assert len({entry.job_id for entry in entries}) == len(entries) == len(job_ids(ledger))


def test_with_all_more_missed_times_than_one_round_makes_follow_in_the_next(ledger: Database) -> None:
    [rule] = rules(often=HOURLY | {"cron": "* * * * *", "misfire": "all", "overlap": "allow"})
    enter(ledger, [rule])
    first = overdue(ledger, "often", hours=10)
    rounds = 1
    while fire(ledger, rule):
        rounds += 1
    times = [entry.fire_at for entry in fired(ledger)]
    assert rounds > 1
    assert times == [first + timedelta(minutes=number) for number in range(len(times))]
    assert datetime.now(UTC) - times[-1] < timedelta(minutes=2)


def test_while_the_last_job_is_unfinished_a_time_is_skipped(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY)
    enter(ledger, [rule])
    for _ in range(2):
        overdue(ledger, "hourly")
        fire(ledger, rule)
    first, second = fired(ledger)
    assert (second.job_id, second.skipped) == (None, "overlap")
    given = claimed(ledger, decode(envelope_of(row_of(ledger, first.job_id))))
    end(ledger, given, Outcome.SUCCEEDED)
    overdue(ledger, "hourly")
    fire(ledger, rule)
    assert fired(ledger)[-1].skipped is None
    assert len(job_ids(ledger)) == 2


def test_with_replace_the_last_job_is_cancelled(ledger: Database) -> None:
    [rule] = rules(hourly=HOURLY | {"overlap": "replace"})
    enter(ledger, [rule])
    for _ in range(3):
        overdue(ledger, "hourly")
        fire(ledger, rule)
    assert [row_of(ledger, entry.job_id).state for entry in fired(ledger)] == ["cancelled", "cancelled", "scheduled"]


def test_several_dispatchers_fire_a_time_once(ledger_url: str) -> None:
    database = Database(ledger_url)
    read = rules(**{f"s{number}": HOURLY | {"overlap": "allow"} for number in range(5)})
    enter(database, read)
    for rule in read:
        overdue(database, rule.name, hours=2)
    errors: list[Exception] = []
    start = threading.Barrier(3)

    def dispatch() -> None:
        own = Database(ledger_url)
        try:
            enter(own, read)
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
