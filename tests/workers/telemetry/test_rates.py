"""Rates that a worker counts for the ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.polling import until
from workers.executor.bench import Add, Bench, Do, Untracked, open_bench

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.queries.rates import report
from penstock.ledger.rows.rates import counting as written
from penstock.ledger.sql.tables import rates, workers
from penstock.workers.executor.runtime.rates import RateCounter


def outcomes(bench: Bench) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for row in bench.rows(rates):
        counts[row.kind, row.outcome] += row.count
    return counts


def send(bench: Bench) -> None:
    for what in ("", "", "fail", "permanent", "discard", "snooze", "retry"):
        bench.producer.enqueue(Do(what=what))
    for what in ("fine", "fine", "fine", "fail"):
        bench.producer.enqueue(Untracked(what=what))


EXPECTED = {
    ("ex.do", "succeeded"): 2,
    ("ex.do", "retry"): 2,
    ("ex.do", "dead"): 1,
    ("ex.do", "discarded"): 1,
    ("ex.do", "snoozed"): 1,
    ("ex.untracked", "succeeded"): 3,
    ("ex.untracked", "retry"): 1,
}


def test_each_attempt_is_counted_by_its_outcome_untracked_ones_too(bench: Bench) -> None:
    worker = bench.worker()
    send(bench)
    until(lambda: bench.idle() and outcomes(bench) == EXPECTED, lambda: str(outcomes(bench)))
    assert {row.source for row in bench.rows(rates)} == {worker.name}


def test_a_worker_that_stops_writes_what_it_counted_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.workers.executor.heartbeat._RATES_SECONDS", 3600.0)
    worker = bench.worker()
    bench.run(Add(a=1, b=1))
    until(lambda: outcomes(bench).total() == 1, "the first write")
    send(bench)
    until(bench.idle)
    bench.workers.remove(worker)
    worker.stop()
    assert outcomes(bench) == {**EXPECTED, ("ex.add", "succeeded"): 1}


def test_a_write_that_fails_is_tried_again_and_counts_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one fails before the commit; the second one is committed, and its answer is lost."""
    failures: list[str] = []
    write = written.write

    def failing(connection, database, source, tallies) -> None:  # type: ignore[no-untyped-def]
        write(connection, database, source, tallies)
        if tallies and not failures:
            failures.append("before the commit")
            raise LedgerUnavailable("gone")

    report_both = heartbeats.report

    def unanswered(*arguments, **options):  # type: ignore[no-untyped-def]
        report_both(*arguments, **options)
        if options.get("tallies") and failures == ["before the commit"]:
            failures.append("after the commit")
            raise LedgerUnavailable("gone")

    monkeypatch.setattr(written, "write", failing)
    monkeypatch.setattr(heartbeats, "report", unanswered)
    bench.worker()
    send(bench)
    until(lambda: len(failures) == 2, "both failures")
    until(lambda: bench.idle() and outcomes(bench) == EXPECTED, lambda: str(outcomes(bench)))


@pytest.fixture
def ledger_bench(ledger_url: str) -> Iterator[Bench]:
    """A bench on each database."""
    settings = Settings(database_url=ledger_url, lease_seconds=2, grace_seconds=5, unknown_kind_grace=timedelta())
    with open_bench(settings) as bench:
        yield bench


_DISK_FULL = {
    "sqlite": "INSERT INTO alembic_version SELECT hex(zeroblob(1000000))",  # by far too large for one page
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = '53100'; END $$",
    "mysql": "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021, MESSAGE_TEXT = 'disk full'",
}
"""Statements that a database answers as it does when its disk is full."""


@pytest.mark.parametrize("part", ["penstock_rates", "progress_done"])
def test_a_lease_is_renewed_while_the_database_takes_nothing_else(ledger_bench: Bench, part: str) -> None:
    """A full disk: what fits into the pages there are is written, such as a lease, and the rest is not. A judge of
    leases then sees no outage, so jobs of a worker that does not renew its own are taken for lost."""
    bench = ledger_bench
    refused: list[str] = []

    def refuse(connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        if statement.startswith("SELECT") or part not in statement:
            return statement, parameters
        refused.append(statement)
        if bench.database.dialect == "sqlite":
            cursor.execute("PRAGMA max_page_count = 1")
        return _DISK_FULL[bench.database.dialect], [()] if isinstance(parameters, list) else ()

    worker = bench.worker()
    sa.event.listen(worker.database.engine, "before_cursor_execute", refuse, retval=True)
    bench.producer.enqueue(Do(what="discard"))
    handle = bench.producer.enqueue(Do(what="progress"))
    until(lambda: len(refused) > 1, "what is refused")
    lease_until = sa.select(workers.c.lease_until).where(workers.c.name == worker.name)
    before = bench.database.read(lambda connection: connection.scalar(lease_until))
    later = before + bench.settings.lease
    until(lambda: bench.database.read(lambda connection: connection.scalar(lease_until)) > later, "a whole lease later")
    assert len(refused) > 2
    sa.event.remove(worker.database.engine, "before_cursor_execute", refuse)
    until(lambda: handle.status().progress is not None, "the progress")
    handle.cancel()
    until(lambda: handle.status().state == "cancelled")
    until(lambda: outcomes(bench)["ex.do", "discarded"] == 1, "the rates")


def test_numbers_that_the_database_refuses_end_no_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(connection, database, source, tallies) -> None:  # type: ignore[no-untyped-def]
        if tallies:
            raise ValueError("no such number")

    monkeypatch.setattr(written, "write", refuse)
    worker = bench.worker()
    assert bench.run(Add(a=1, b=1)).state == "succeeded"
    until(lambda: "rates, are left out" in caplog.text, "the log")
    assert bench.run(Add(a=1, b=1)).state == "succeeded"
    assert worker.not_live() is None
    monkeypatch.setattr(written, "write", lambda *_: None)


def test_a_counter_that_fails_harms_no_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RateCounter, outcomes: object) -> None:
        raise RuntimeError("cannot count")

    monkeypatch.setattr(RateCounter, "add", fail)
    bench.worker()
    assert bench.run(Add(a=1, b=1)).state == "succeeded"
    until(bench.idle)


def test_waits_and_runs_are_measured(bench: Bench) -> None:
    for _ in range(20):
        bench.producer.enqueue(Add(a=1, b=1))
    time.sleep(0.5)  # that is their wait
    bench.worker()
    until(lambda: outcomes(bench)["ex.add", "succeeded"] == 20, "all")
    figures = report(bench.database, timedelta(hours=1)).kinds["ex.add"]
    assert figures.wait.p50 is not None
    assert figures.run.p50 is not None
    assert figures.wait.p50 > 0.45
    assert figures.run.p50 < figures.wait.p50
