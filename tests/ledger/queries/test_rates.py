"""The rates in the ledger, on each database: written, folded, asked for."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import LEASE, Note, Ring, claimed, message, start_worker, stock_envelope

from penstock.ledger.members import heartbeats
from penstock.ledger.queries.rates import error_counts, report
from penstock.ledger.queries.scope import Scope
from penstock.ledger.retention.folding import drop_short_spans, fold
from penstock.ledger.rows.rates.counting import Cell, Tally, this_minute
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import rates, workers
from penstock.ledger.transitions import abandoned, bury, cancel

HOUR = timedelta(hours=1)
MAIL, SYNC = "mail.send", "sync.run"


def tally(count: int, run: float = 0.1, wait: float = 1.0) -> Tally:
    result = Tally(count)
    result.run.add([run] * count)
    result.wait.add([wait] * count)
    return result


def beat(ledger: Database, name: str, tallies: dict[tuple[int, Cell], Tally], *, alive: bool = True) -> None:
    start_worker(ledger, name)
    heartbeats.beat(ledger, name, lease=LEASE if alive else -LEASE)
    heartbeats.report(ledger, name, tallies=tallies)


def settle(ledger: Database, minutes: int = 10) -> None:
    """Let all rows be as if they had been written so long ago."""
    at = datetime.now(UTC) - timedelta(minutes=minutes)
    ledger.write(lambda connection: connection.execute(sa.update(rates).values(written_at=at)))


def rows(ledger: Database, **where: Any) -> list[Any]:
    conditions = [rates.c[name] == value for name, value in where.items()]
    select = sa.select(rates).where(*conditions).order_by(rates.c.span, rates.c.minute)
    return ledger.read(lambda connection: list(connection.execute(select)))


def outcomes(ledger: Database) -> Counter[tuple[str, str, str]]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for row in rows(ledger, span=0):
        counts[row.kind, row.queue, row.outcome] += row.count
    return counts


def busy(ledger: Database) -> int:
    """Two workers with known numbers. Returns the minute."""
    minute = this_minute()
    beat(ledger, "w1", {(minute, (MAIL, "out", "succeeded")): tally(90, run=0.1, wait=1)})
    beat(
        ledger,
        "w2",
        {
            (minute, (MAIL, "out", "succeeded")): tally(5, run=10, wait=20),
            (minute, (MAIL, "out", "retry")): tally(4, run=0.1),
            (minute - 5, (MAIL, "out", "dead")): tally(1, run=0.1),
            (minute, (SYNC, "slow", "succeeded")): tally(10, run=60, wait=300),
            (minute, (SYNC, "slow", "snoozed")): tally(3, run=0.1),
        },
    )
    return minute


def check(ledger: Database, since: timedelta) -> None:
    seen = report(ledger, since)
    assert list(seen.kinds) == [MAIL, SYNC]
    mail, sync = seen.kinds.values()
    assert (mail.ended, mail.errors, mail.error_rate) == (100, 5, 0.05)
    assert mail.outcomes == {"dead": 1, "retry": 4, "succeeded": 95}
    assert mail.run.p50 == pytest.approx(0.1, rel=0.1)
    assert mail.run.p99 == pytest.approx(10, rel=0.1)
    assert mail.run.mean == pytest.approx((95 * 0.1 + 5 * 10) / 100)
    assert mail.wait.p95 == pytest.approx(1, rel=0.1)
    assert mail.wait.p99 == pytest.approx(20, rel=0.1)
    assert (sync.ended, sync.errors, sync.outcomes["snoozed"]) == (10, 0, 3)
    assert sync.run.p95 == pytest.approx(60, rel=0.1)
    assert seen.queues["slow"] == sync
    assert seen.total.ended == 110
    assert seen.slowest() == [SYNC, MAIL]
    assert sum(point.ended for point in seen.series) == 110
    assert sum(point.errors for point in seen.series) == 5
    assert len(seen.series) <= 181
    gaps = {later.at - earlier.at for earlier, later in zip(seen.series, seen.series[1:], strict=False)}
    assert gaps == {seen.step}


@pytest.mark.parametrize("since", [HOUR, 24 * HOUR, 7 * 24 * HOUR, 30 * 24 * HOUR], ids=str)
def test_known_numbers_are_reported_over_each_time_before_and_after_folding(ledger: Database, since: timedelta) -> None:
    busy(ledger)
    check(ledger, since)
    settle(ledger)
    assert fold(ledger, lease=LEASE) == 6
    assert not rows(ledger, span=0)
    check(ledger, since)


def test_minutes_in_which_nothing_happened_are_in_the_series_as_zero(ledger: Database) -> None:
    minute = busy(ledger)
    series = report(ledger, HOUR).series
    counts = {int(point.at.timestamp() // 60): point.ended for point in series}
    assert counts[minute - 5] == 1
    assert [counts[minute - ago] for ago in (1, 2, 3, 4, 6)] == [0, 0, 0, 0, 0]


def test_a_minute_that_is_written_twice_counts_once(ledger: Database) -> None:
    key = (this_minute(), (MAIL, "out", "succeeded"))
    beat(ledger, "w1", {key: tally(3)})
    beat(ledger, "w1", {key: tally(3)})
    beat(ledger, "w1", {key: tally(8)})
    heartbeats.sign_off(ledger, "w1")
    heartbeats.report(ledger, "w1", tallies={key: tally(9)})
    assert report(ledger, HOUR).total.ended == 9


def test_folding_adds_late_rows_to_those_that_were_folded_before(ledger: Database) -> None:
    minute = this_minute()
    key = (minute, (MAIL, "out", "succeeded"))
    for name, count in (("w1", 3), ("w2", 4)):
        beat(ledger, name, {key: tally(count)})
        settle(ledger)
        assert fold(ledger, lease=LEASE) == 1
    assert [(row.span, row.minute, row.source, row.count) for row in rows(ledger)] == [
        (span, minute // abs(span) * abs(span), "", 7) for span in (-60, -10, -1, 1, 10, 60, 1440)
    ]
    assert fold(ledger, lease=LEASE) == 0


def test_rows_of_a_silent_worker_wait_until_it_is_back_or_for_an_hour(ledger: Database) -> None:
    """A silent worker may not know whether its last write is done, and write it again."""
    key = (this_minute(), (MAIL, "out", "succeeded"))
    beat(ledger, "w1", {key: tally(3)}, alive=False)
    settle(ledger)
    assert fold(ledger, lease=LEASE) == 0
    beat(ledger, "w1", {key: tally(3)})
    settle(ledger)
    assert fold(ledger, lease=LEASE) == 1
    beat(ledger, "w2", {key: tally(5)}, alive=False)
    settle(ledger)
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    silent = sa.update(workers).where(workers.c.name == "w2").values(lease_until=long_ago)
    ledger.write(lambda connection: connection.execute(silent))
    assert fold(ledger, lease=LEASE) == 1
    assert report(ledger, HOUR).total.ended == 8


def test_a_minute_that_may_still_change_is_not_folded(ledger: Database) -> None:
    busy(ledger)
    assert fold(ledger, lease=LEASE) == 0


def test_folding_takes_batches(ledger: Database) -> None:
    busy(ledger)
    settle(ledger)
    assert [fold(ledger, lease=LEASE, limit=4) for _ in range(3)] == [4, 2, 0]
    check(ledger, HOUR)


def test_short_spans_are_dropped_and_hours_stay(ledger: Database) -> None:
    minute = this_minute() - 28 * 60
    beat(ledger, "w1", {(minute, (MAIL, "out", "succeeded")): tally(3)})
    settle(ledger)
    fold(ledger, lease=LEASE)
    assert drop_short_spans(ledger) == 4
    assert [row.span for row in rows(ledger)] == [-60, 60, 1440]
    assert report(ledger, 7 * 24 * HOUR).total.ended == 3


@pytest.mark.parametrize("since", [HOUR, 24 * HOUR, 7 * 24 * HOUR], ids=str)
@pytest.mark.parametrize("until", ["2026-03-01T00:00:30", "2026-03-01T09:59:59", "2026-03-02T10:10:00"])
def test_each_minute_counts_once_wherever_the_time_begins(ledger: Database, since: timedelta, until: str) -> None:
    """The figures come from rows of several spans, and the series from those of all kinds together."""
    now = datetime.fromisoformat(until).replace(tzinfo=UTC)
    end = int(now.timestamp() // 60)
    minutes = [end - ago for ago in range(0, int(since / timedelta(minutes=1)) + 200, 7 if since == HOUR else 77)]
    kinds = (MAIL, SYNC)
    beat(ledger, "w1", {(minute, (kind, "q", "succeeded")): tally(1) for minute in minutes for kind in kinds})
    settle(ledger)
    while fold(ledger, lease=LEASE):
        pass
    late = minutes[3]
    beat(ledger, "w2", {(late, (MAIL, "q", "dead")): tally(2)})  # not folded
    seen = report(ledger, since, now=now)
    expected = sum(minute >= seen.since.timestamp() / 60 for minute in minutes)
    assert {kind: figures.ended for kind, figures in seen.kinds.items()} == {MAIL: expected + 2, SYNC: expected}
    assert (sum(point.ended for point in seen.series), sum(point.errors for point in seen.series)) == (
        2 * expected + 2,
        2,
    )
    assert all(figures.last is not None and figures.last <= now for figures in seen.kinds.values())
    assert seen.kinds[MAIL].run.p50 == seen.series[-1].run_p50
    of_one = report(ledger, since, kinds=[SYNC], now=now)
    assert (of_one.total.ended, sum(point.ended for point in of_one.series)) == (expected, expected)


def test_errors_are_counted_by_queue_and_kind(ledger: Database) -> None:
    busy(ledger)
    expected = {("out", MAIL): (5, 100), ("slow", SYNC): (0, 10)}
    for since in (timedelta(minutes=15), 3 * HOUR, 48 * HOUR):
        assert error_counts(ledger, since) == expected
    assert error_counts(ledger, timedelta(minutes=3)) == {("out", MAIL): (4, 99), ("slow", SYNC): (0, 10)}
    settle(ledger)
    fold(ledger, lease=LEASE)
    assert error_counts(ledger, timedelta(minutes=15)) == expected


def test_kinds_and_queues_that_differ_in_case_are_told_apart(ledger: Database) -> None:
    minute = this_minute()
    beat(ledger, "w1", {(minute, (kind, "q", "succeeded")): tally(count) for kind, count in (("a", 1), ("A", 2))})
    settle(ledger)
    fold(ledger, lease=LEASE)
    assert {kind: figures.ended for kind, figures in report(ledger, HOUR).kinds.items()} == {"a": 1, "A": 2}
    assert list(report(ledger, HOUR, kinds=["a"]).kinds) == ["a"]


def test_a_report_is_bounded_by_kinds_queues_and_scope(ledger: Database) -> None:
    busy(ledger)
    assert list(report(ledger, HOUR, kinds=[SYNC]).kinds) == [SYNC]
    assert list(report(ledger, HOUR, queues=["out"]).queues) == ["out"]
    assert list(report(ledger, HOUR, scope=Scope(kinds=("mail.*",))).kinds) == [MAIL]
    assert report(ledger, HOUR, scope=Scope(queues=("slow",))).total.ended == 10
    assert report(ledger, HOUR, scope=Scope(tenants=("acme",))).total.ended == 0


def test_a_report_of_nothing_has_all_points(ledger: Database) -> None:
    seen = report(ledger, HOUR)
    assert len(seen.series) == 60
    assert (seen.total.ended, seen.total.error_rate, seen.kinds) == (0, None, {})


def test_ends_outside_of_attempts_are_counted_in_their_transaction(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=-LEASE)
    ring = claimed(ledger, message(Ring(number="1")))
    assert abandoned.bury_abandoned(ledger) == [ring.message.id]
    unseen = message(Note())
    cancel.request_cancel(ledger, unseen.id, kind="ledger.note")
    bury.bury_message(ledger, stock_envelope("nothing.known", {}, queue="q"), b"", "unknown_kind", "no such kind")
    assert outcomes(ledger) == {
        ("ledger.ring", "notes", "dead"): 1,
        ("ledger.note", "notes", "cancelled"): 1,
        ("other", "q", "dead"): 1,
    }


def test_a_crash_that_the_next_claim_finds_is_counted(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=-LEASE)
    sent = message(Note())
    claimed(ledger, sent)
    claimed(ledger, sent, worker="w2", again=True)
    assert outcomes(ledger) == {("ledger.note", "notes", "crashed"): 1}
