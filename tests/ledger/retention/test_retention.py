"""Ended jobs are pruned after their retention time, with all that belongs to them, and nothing else is."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note, attempts_of, change, claimed, end, letter_of, message, row_of, start_worker

from penstock.config.errors import ObjectNotFound, StorageError
from penstock.config.sections.retention import RetentionSettings
from penstock.config.settings import Settings
from penstock.ledger.queries import stats
from penstock.ledger.queries.results import read_result, write_result
from penstock.ledger.retention.pruning import BATCH, Pruning
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, effects, firings, jobs, metadata, unique_keys, workers
from penstock.ledger.transitions import due
from penstock.producers.storage import Storage, make_storage
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import encode
from penstock.schemas.wire.ids import first_id, made_at, new_id
from penstock.workers.dispatcher import pruning as service

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
DEFAULTS = RetentionSettings()


def no_storage() -> Storage:
    raise AssertionError("nothing of this lies in the storage")


def prune(ledger: Database, keep: RetentionSettings = DEFAULTS, **options: Any) -> Counter[str]:
    return Pruning(ledger, keep, options.pop("open_storage", no_storage), **options).run()


def id_of(age: timedelta) -> str:
    """An id that was made so long ago."""
    return first_id(NOW - age)[:19] + uuid.uuid4().hex[:4] + "-" + uuid.uuid4().hex[:12]


def job(ledger: Database, state: State, ended: timedelta, *, enqueued: timedelta | None = None, **values: Any) -> str:
    """A job that ended so long ago."""
    row = due.waiting(encode(Note(), due_at=NOW, id=values.pop("id", None) or id_of(enqueued or ended)))
    row |= {"state": state, "finished_at": NOW - ended if State(state).final else None, **values}
    ledger.write(lambda connection: connection.execute(sa.insert(jobs), [row]))
    return str(row["id"])


def add(ledger: Database, table: sa.Table, **values: Any) -> None:
    ledger.write(lambda connection: connection.execute(sa.insert(table).values(**values)))


def count(ledger: Database, table: sa.Table) -> int:
    select = sa.select(sa.func.count()).select_from(table)
    return int(ledger.read(lambda connection: connection.execute(select).scalar_one()))


def left(ledger: Database) -> set[str]:
    return set(ledger.read(lambda connection: connection.scalars(sa.select(jobs.c.id)).all()))


def test_jobs_are_kept_for_the_time_of_their_state(ledger: Database) -> None:
    old = {
        State.SUCCEEDED: job(ledger, State.SUCCEEDED, 8 * DAY),
        State.DISCARDED: job(ledger, State.DISCARDED, 31 * DAY),
        State.CANCELLED: job(ledger, State.CANCELLED, 31 * DAY),
    }
    kept = {
        job(ledger, State.SUCCEEDED, 6 * DAY),
        job(ledger, State.SUCCEEDED, 6 * DAY, enqueued=300 * DAY),
        job(ledger, State.DISCARDED, 8 * DAY),
        job(ledger, State.DEAD, 400 * DAY),
        *(job(ledger, state, 400 * DAY) for state in State if not state.final),
    }
    assert prune(ledger, dry_run=True) == Counter(dict.fromkeys(old, 1))
    assert left(ledger) == kept | set(old.values()), "a dry run deletes nothing"
    assert prune(ledger) == Counter(dict.fromkeys(old, 1))
    assert left(ledger) == kept
    assert prune(ledger, RetentionSettings(dead=30 * DAY)) == Counter({State.DEAD: 1})


def test_jobs_whose_id_contains_no_time_are_pruned_too(ledger: Database) -> None:
    for mark in "0249bf":
        job(ledger, State.SUCCEEDED, 8 * DAY, id=mark + str(uuid.uuid4())[1:])
        job(ledger, State.SUCCEEDED, 8 * DAY, id=f"{mark}-of-another-form")
    assert prune(ledger) == Counter({State.SUCCEEDED: 12})


def test_pruning_goes_in_batches(ledger: Database) -> None:
    rows = [due.waiting(encode(Note(), due_at=NOW, id=id_of(8 * DAY))) for _ in range(BATCH + 7)]
    for row in rows:
        row |= {"state": State.SUCCEEDED, "finished_at": NOW - 8 * DAY}
    ledger.write(lambda connection: ledger.execute_many(connection, ledger.insert(jobs), rows))
    kept = job(ledger, State.DEAD, 9 * DAY)
    counts_of_batches = [counts for counts in Pruning(ledger, DEFAULTS, no_storage).steps() if counts]
    assert [sum(counts.values()) for counts in counts_of_batches] == [BATCH - 1, 8], (
        "the one that stays is in the first"
    )
    assert left(ledger) == {kept}


def test_attempts_effects_and_dead_letters_are_pruned_with_their_job(ledger: Database) -> None:
    gone, stays = message(Note()), message(Note())
    for sent in (gone, stays):
        end(ledger, claimed(ledger, sent), Outcome.DEAD, error="no")
        add(ledger, effects, id=str(uuid.uuid4()), job_id=sent.id, key="k", fence=1, begun_at=NOW)
    change(ledger, gone.id, finished_at=NOW - 40 * DAY)
    later = NOW + 40 * DAY  # so that the ids are old enough
    change(ledger, stays.id, finished_at=later)
    assert prune(ledger, RetentionSettings(dead=30 * DAY, letters=None), now=later) == Counter({State.DEAD: 1})
    assert (row_of(ledger, gone.id), attempts_of(ledger, gone.id), letter_of(ledger, gone.id)) == (None, [], None)
    assert len(attempts_of(ledger, stays.id)) == 1
    assert letter_of(ledger, stays.id) is not None
    assert count(ledger, effects) == 1


def test_stored_results_go_first_and_a_job_stays_until_its_own_has(ledger: Database, tmp_path: Path) -> None:
    storage = make_storage(f"file:{tmp_path}")
    old = job(ledger, State.SUCCEEDED, 8 * DAY)
    ref = write_result(storage, old, 3, b"[1]")
    change(ledger, old, result_ref=ref, fence=3)
    crashed = job(ledger, State.DISCARDED, 40 * DAY, fence=2, crashes=1)
    orphan = write_result(storage, crashed, 1, b"[2]")

    def unavailable() -> Storage:
        raise StorageError("unavailable")

    assert prune(ledger, open_storage=unavailable) == Counter()
    assert left(ledger) == {old, crashed}
    assert prune(ledger, open_storage=lambda: storage) == Counter({State.SUCCEEDED: 1, State.DISCARDED: 1})
    for deleted in (ref, orphan):
        assert storage.find(deleted) is None
        try:
            read_result(storage, deleted)
        except ObjectNotFound:
            continue
        raise AssertionError("it is still there")


def letter(ledger: Database, **values: Any) -> str:
    dead_letter_id = new_id()
    empty = {"kind": None, "queue": "notes", "reason": "undecodable", "detail": "", "fingerprint": "f", "raw": b"x"}
    add(ledger, dead_letters, **{**empty, "id": dead_letter_id, "created_at": NOW - 400 * DAY, **values})
    return dead_letter_id


def test_dead_letters_without_a_job_are_pruned_once_decided(ledger: Database) -> None:
    open_ = letter(ledger)
    gone = [letter(ledger, replayed_at=NOW - 31 * DAY), letter(ledger, discarded_at=NOW - 31 * DAY)]
    recent = [letter(ledger, replayed_at=NOW - DAY), letter(ledger, discarded_at=NOW - DAY)]
    assert prune(ledger) == Counter({"dead letters": 2})
    assert [letter_of(ledger, job_id) for job_id in gone] == [None, None]
    assert None not in [letter_of(ledger, dead_letter_id) for dead_letter_id in (open_, *recent)]
    assert prune(ledger, RetentionSettings(dead=30 * DAY)) == Counter({"dead letters": 1})
    assert letter_of(ledger, open_) is None


def test_a_dead_job_is_pruned_once_its_dead_letter_is_discarded(ledger: Database) -> None:
    long_ago, lately, open_ = message(Note()), message(Note()), message(Note())
    for sent in (long_ago, lately, open_):
        end(ledger, claimed(ledger, sent), Outcome.DEAD, error="no")
    for sent, age in ((long_ago, 31 * DAY), (lately, DAY)):
        decided = sa.update(dead_letters).where(dead_letters.c.id == sent.id).values(discarded_at=NOW - age)
        ledger.write(lambda connection, decided=decided: connection.execute(decided))  # type: ignore[misc]
    assert prune(ledger, dry_run=True) == prune(ledger) == Counter({State.DEAD: 1})
    assert left(ledger) == {lately.id, open_.id}
    assert (letter_of(ledger, long_ago.id), attempts_of(ledger, long_ago.id)) == (None, [])


def test_firings_workers_keys_and_acts_go_too(ledger: Database) -> None:
    for name in ("a", "b"):
        for age in (100, 91, 1):
            add(ledger, firings, schedule=name, fire_at=NOW - age * DAY, fired_at=NOW - age * DAY)
    start_worker(ledger, "alive")
    start_worker(ledger, "dead", lease=-31 * DAY)
    ended = job(ledger, State.SUCCEEDED, DAY)
    for number, (holder, until) in enumerate(
        [(id_of(60 * DAY), None), (id_of(60 * DAY), NOW + DAY), (id_of(DAY), None), (ended, None)]
    ):
        add(ledger, unique_keys, id=str(number), kind="k", key="k", job_id=holder, held_until=until)
    ledger.write(lambda connection: audit.write(connection, actor="ada", act="retry", subject="x"))
    assert prune(ledger, dry_run=True) == Counter({"firings": 4, "workers": 1, "keys": 1})
    assert prune(ledger) == Counter({"firings": 4, "workers": 1, "keys": 1})
    assert (count(ledger, firings), count(ledger, workers), count(ledger, unique_keys)) == (2, 1, 3)
    assert prune(ledger, RetentionSettings(audit=DAY), now=NOW + 2 * DAY)["audit"] == 1


def test_the_service_prunes_and_begins_again(sqlite_url: str) -> None:
    from penstock.ledger.sql.upgrade import upgrade

    ledger = Database(sqlite_url)
    upgrade(ledger)
    running = service.Retention(Settings(database_url=sqlite_url), ledger)
    try:
        for _ in range(2):
            job(ledger, State.SUCCEEDED, 8 * DAY)
            assert running.run_once() is False, "its time has not come"
            running._pass_at = 0.0
            while running.run_once():
                pass
            assert left(ledger) == set()
    finally:
        running.close()
        ledger.close()


class Rests(threading.Event):
    """In place of a service's `stopping`: the rests that it would take."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.taken.append(timeout or 0.0)
        return False


class Service:
    """Retention whose clock the test moves: each step takes as long as it says."""

    def __init__(self, ledger: Database, **retention: Any) -> None:
        self.now, self.step, self.calls = 0.0, 0.0, 0
        settings = Settings(database_url=ledger.url, retention=RetentionSettings(**retention))
        self.running = service.Retention(settings, ledger, clock=self.clock)
        self.running.stopping = self.rests = Rests()
        self.calls = 0

    def clock(self) -> float:
        self.calls += 1
        self.now += self.step if self.calls % 2 == 0 else 0.0  # a step asks when it begins and when it has ended
        return self.now

    def run(self, *seconds: float) -> float:
        """Run a pass whose steps take so long, the last of these also for all that follow. Returns the time until the
        next pass."""
        self.step, self.now = 0.0, max(self.now, self.running._pass_at)
        durations = iter(seconds)
        while True:
            self.step = next(durations, self.step)
            if not self.running.run_once():
                break
        self.step = 0.0
        return self.running._pass_at - self.now


def expired(ledger: Database, batches: int, oldest: timedelta, apart: timedelta = timedelta()) -> None:
    """Full batches of jobs that may be pruned: the first made so long ago, each so far from the next."""
    for number in range(batches):
        age = oldest - number * apart
        rows = [due.waiting(encode(Note(), due_at=NOW, id=id_of(age))) for _ in range(BATCH)]
        for row in rows:
            row |= {"state": State.SUCCEEDED, "finished_at": NOW - age}
        due.keep(ledger, rows)


def test_deleting_does_not_put_off_the_next_pass_and_reading_what_is_kept_does(ledger: Database) -> None:
    expired(ledger, 3, 8 * DAY)
    retention = Service(ledger)
    # As 1,000 jobs end each second, a pass deletes for minutes, and the next one must not wait for hours.
    assert retention.run(200.0, 200.0, 200.0, 0.0) == pytest.approx(service.PASS_EVERY_SECONDS)
    assert left(ledger) == set()
    for _ in range(10):
        job(ledger, State.DEAD, 8 * DAY)
    assert retention.run(200.0, 0.0) == pytest.approx(50 * 200.0)


def test_a_pass_that_takes_long_rests_less(ledger: Database) -> None:
    expired(ledger, 3, 8 * DAY)
    retention = Service(ledger)
    retention.run(200.0, 200.0, 200.0, 0.0)
    assert retention.rests.taken[:3] == pytest.approx([800.0, 100.0, 100.0])


def test_retention_reports_that_it_does_not_keep_up_and_that_it_does_again(
    ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.dispatcher")
    expired(ledger, 3, 8 * DAY, apart=timedelta(seconds=30))  # 500 jobs in 30 s, which take 1,250 s to delete
    retention = Service(ledger)
    retention.run(1250.0, 1250.0, 1250.0, 0.0)
    reports = [record.getMessage() for record in caplog.records if "does not keep up" in record.getMessage()]
    assert len(reports) == 2
    assert "in 1250 s it has deleted 500 rows (0/s), of jobs that were made within 30 s" in reports[0]
    expired(ledger, 1, 8 * DAY)
    retention.run(1.0, 0.0)
    assert caplog.records[-1].getMessage() == "retention keeps up again"


def test_retention_that_walks_faster_than_jobs_were_made_keeps_up(
    ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    expired(ledger, 3, 8 * DAY, apart=timedelta(hours=1))
    Service(ledger).run(1000.0, 1000.0, 1000.0, 0.0)
    assert not [record for record in caplog.records if "keep up" in record.getMessage()]


def test_stats_contain_sizes_and_the_times_of_pruning(ledger: Database) -> None:
    job(ledger, State.SUCCEEDED, 2 * DAY, enqueued_at=NOW - 3 * DAY)
    job(ledger, State.SUCCEEDED, DAY)
    job(ledger, State.DEAD, DAY)
    tables = {table.table: table for table in stats.tables(ledger)}
    assert set(tables) == set(metadata.tables)
    assert tables[jobs.name].rows == 3
    assert tables[jobs.name].bytes
    states = {state.state: state for state in stats.states(ledger, DEFAULTS)}
    assert list(states) == list(State)
    done, dead = states[State.SUCCEEDED], states[State.DEAD]
    assert (done.jobs, done.oldest, done.kept) == (2, NOW - 3 * DAY, 7 * DAY)
    assert done.next_prune == NOW + 5 * DAY
    assert (dead.jobs, dead.kept, dead.next_prune) == (1, None, None)
    assert states[State.RUNNING].jobs == 0


def test_the_first_id_of_a_time_comes_before_all_that_are_made_then() -> None:
    before, middle, after = first_id(datetime.now(UTC)), new_id(), first_id(datetime.now(UTC) + timedelta(seconds=1))
    assert before <= middle < after
    assert made_at(before) is not None
