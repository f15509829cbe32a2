"""Frequent queries of a dispatcher are answered from an index, however many rows wait."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note

from penstock.config.sections.retention import RetentionSettings
from penstock.ledger.queries import fleet
from penstock.ledger.queries.jobs import JobFilter, find_page
from penstock.ledger.retention.pruning import Pruning
from penstock.ledger.rows.jobs.terms import tag_term
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, job_terms, jobs
from penstock.ledger.transitions import due, lost
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.storage import make_storage
from penstock.schemas.states import State
from penstock.schemas.wire.codec import encode
from penstock.workers.dispatcher import due_jobs

INDEX = "ix_penstock_jobs_due"
ROWS = 5_000
HOUR = timedelta(hours=1)


def fill(ledger: Database, sent: timedelta = timedelta()) -> None:
    """Rows that are not due, so many that a planner would not read them all.

    Arguments:
        sent: of the queued ones, from now. A planner that takes state and time for independent believes that a share of
            the scheduled ones is due, too, if it is in the past.
    """
    now = datetime.now(UTC)
    rows = [due.waiting(encode(Note(), due_at=now + HOUR + timedelta(seconds=number))) for number in range(ROWS)]
    rows += [
        row | {"id": f"q{number}", "state": "queued", "due_at": now + sent} for number, row in enumerate(rows[:1000])
    ]

    def insert_rows(connection: sa.Connection) -> None:
        for start in range(0, len(rows), 1000):
            ledger.execute_many(connection, ledger.insert(jobs), rows[start : start + 1000])

    ledger.write(insert_rows)
    analyze(ledger, jobs)


def analyze(ledger: Database, table: sa.Table) -> None:
    word = "TABLE " if ledger.dialect in ("mysql", "mariadb") else ""
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"ANALYZE {word}{table.name}"))


def asked(ledger: Database, act: Callable[[], Any], table: sa.Table = jobs) -> list[tuple[str, Any]]:
    """The SELECTs on a table that this makes, with their values."""
    statements: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT") and table.name in statement:
            statements.append((statement, values))

    sa.event.listen(ledger.engine, "before_cursor_execute", keep)
    try:
        act()
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", keep)
    assert statements
    return statements


def plan(ledger: Database, statement: str, values: Any) -> str:
    explain = "EXPLAIN QUERY PLAN " if ledger.dialect == "sqlite" else "EXPLAIN "
    with ledger.engine.connect() as connection:
        return "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(explain + statement, values))


def test_looking_for_what_is_due_reads_the_index_in_its_order(ledger: Database) -> None:
    fill(ledger)
    due.schedule(ledger, [encode(Note(), due_at=datetime.now(UTC)) for _ in range(3)])
    statements = asked(ledger, lambda: due_jobs.send_due(ledger, MemoryBroker()))
    due.schedule(ledger, [encode(Note(), due_at=datetime.now(UTC))])
    statements += asked(ledger, lambda: due_jobs.send_due(ledger, MemoryBroker(), exclude=["full"]))
    assert len(statements) >= 6, "looks, and takes from two states, twice"
    check(ledger, statements)


def test_looking_for_what_was_lost_does_so_too(ledger: Database) -> None:
    fill(ledger)
    before = lost.clock(ledger) - HOUR
    check(ledger, asked(ledger, lambda: lost.put_back(ledger, before)))


def test_looking_for_what_is_over_walks_along_the_primary_key(ledger: Database) -> None:
    fill(ledger)
    pruning = Pruning(ledger, RetentionSettings(), lambda: make_storage("file:nowhere"))
    pages = "ORDER BY penstock_jobs.id"
    statements = [
        statement for statement in asked(ledger, pruning.run) if pages in statement[0] and "JOIN" not in statement[0]
    ]
    assert len(statements) >= 2, "what is old, and ids that tell no time"
    check(ledger, statements, {"postgresql": "pk_penstock_jobs", "sqlite": "autoindex"}.get(ledger.dialect, "PRIMARY"))


def test_metrics_and_the_doctor_read_what_is_due_from_the_index(ledger: Database) -> None:
    fill(ledger, sent=HOUR)
    due.schedule(ledger, [encode(Note(), due_at=datetime.now(UTC)) for _ in range(3)])
    check(ledger, asked(ledger, lambda: fleet.count_due(ledger)))
    for statement, values in asked(ledger, lambda: fleet.lateness(ledger)):
        query_plan = plan(ledger, statement, values)
        is_read = INDEX in query_plan or "penstock_jobs_state_" in query_plan  # of a rare state either has a few rows
        assert is_read or "optimized away" in query_plan or "No matching" in query_plan, query_plan
    queued, _held = asked(ledger, lambda: fleet.waiting_kinds(ledger, 20))
    assert INDEX in plan(ledger, *queued)


LISTS = [
    (JobFilter(), "ix_penstock_jobs_listed"),
    (JobFilter(error="none"), "ix_penstock_jobs_listed"),
    (JobFilter(enqueued_until=datetime(2020, 1, 2, tzinfo=UTC)), "ix_penstock_jobs_listed"),
    (JobFilter(states=(State.DEAD,)), "state_enqueued_at_id"),
    (JobFilter(states=(State.DEAD,), finished_since=datetime(2020, 1, 1, tzinfo=UTC)), "state_finished_at_id"),
    (JobFilter(kind="rare"), "listed_kind"),
    (JobFilter(tenant="rare"), "listed_tenant"),
    (JobFilter(tags=("rare",)), "penstock_job_terms"),
]


@pytest.mark.parametrize(("filter", "index"), LISTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_list_of_jobs_reads_an_index_in_its_order(
    ledger: Database, filter: JobFilter, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.ledger.queries.jobs.pages.LOOK_AT", 100)
    start = datetime(2020, 1, 1, tzinfo=UTC)
    common = due.waiting(encode(Note()))
    rows = [
        common
        | {"id": f"j{number:05}", "enqueued_at": start + timedelta(minutes=number), "due_at": None}
        | {"state": "succeeded", "kind": f"k{number % 50}", "tenant": f"t{number % 50}", "key": f"key{number}"}
        | {"finished_at": start + timedelta(minutes=number + 1)}
        | ({"state": "dead", "kind": "rare", "tenant": "rare"} if number % 10 == 0 else {})
        for number in range(ROWS)
    ]
    terms = [{"term": tag_term("rare"), "enqueued_at": row["enqueued_at"], "job_id": row["id"]} for row in rows[::10]]

    def insert_rows(connection: sa.Connection) -> None:
        ledger.execute_many(connection, ledger.insert(jobs), rows)
        ledger.execute_many(connection, ledger.insert(job_terms), terms)

    ledger.write(insert_rows)
    for table in (jobs, job_terms):
        analyze(ledger, table)
    matches = find_page(ledger, filter, limit=20)
    statements = asked(ledger, lambda: find_page(ledger, filter, after=matches.next, limit=20))
    for statement, values in statements:
        query_plan = plan(ledger, statement, values)
        assert index in query_plan, query_plan
        for costly in ("Seq Scan", "SCAN penstock", "filesort", "'ALL'"):
            assert costly not in query_plan, query_plan
        # SQLite sorts the few that run, and merges them with the others, which come in the index's order.
        steps = [literal_eval(line) for line in query_plan.splitlines()] if ledger.dialect == "sqlite" else []
        sorted_parts = {parent for _, parent, _, detail in steps if "TEMP B-TREE" in detail}
        assert sorted_parts.isdisjoint(parent for _, parent, _, detail in steps if index in detail), query_plan


def test_metrics_and_the_doctor_read_no_dead_letter_that_is_settled(ledger: Database) -> None:
    settled = {"kind": "k", "queue": "q", "reason": "failed", "detail": "d" * 200, "fingerprint": "f"}
    now = datetime.now(UTC)
    rows = [
        {"id": str(number), "created_at": now, "replayed_at": now if number > 20 else None, **settled}
        for number in range(ROWS)
    ]
    ledger.write(lambda connection: connection.execute(sa.insert(dead_letters), rows))
    if ledger.dialect != "sqlite":  # which no one analyzes, and which would then take all dead letters for open ones
        analyze(ledger, dead_letters)
    counts = [
        asked(ledger, lambda since=since: fleet.open_dead_letters(ledger, since=since), dead_letters)  # type: ignore[misc]
        for since in (None, HOUR)
    ]
    for *_clock, (statement, values) in counts:
        query_plan = plan(ledger, statement, values)
        assert "ix_penstock_dead_letters_open" in query_plan, query_plan
        assert "Seq Scan" not in query_plan, query_plan


def check(ledger: Database, statements: list[tuple[str, Any]], index: str = INDEX) -> None:
    for statement, values in statements:
        query_plan = plan(ledger, statement, values)
        assert index in query_plan, query_plan
        for costly in ("Seq Scan", "SCAN penstock", "TEMP B-TREE", "filesort", "'ALL'"):
            assert costly not in query_plan, query_plan
