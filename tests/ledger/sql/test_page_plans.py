"""No page of the console reads the table of jobs or the audit log in whole, on any database."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note

from penstock.config.errors import JobNotFound
from penstock.config.settings import Settings
from penstock.ledger.alerts.overview import read_alerts, read_firings
from penstock.ledger.members.overview import read_members
from penstock.ledger.queries import dead_letters, failure_groups, fleet, rates, stats
from penstock.ledger.queries.jobs import JobFilter, count, find_page, full_id, related, show
from penstock.ledger.queries.selection import Selection
from penstock.ledger.rows import audit
from penstock.ledger.rows.waits import limit_waits
from penstock.ledger.schedules import commands as schedules
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit as audit_log
from penstock.ledger.sql.tables import dead_letters as letters
from penstock.ledger.sql.tables import jobs, workflows
from penstock.ledger.transitions import due
from penstock.ledger.workflows import commands as workflow_commands
from penstock.schemas.states import State
from penstock.schemas.wire.codec import encode
from penstock.schemas.wire.ids import first_id

ROWS = 5_000
START = datetime(2026, 1, 1, tzinfo=UTC)
DETAIL = '{"reason": "%s"}' % ("x" * 400)
"""Without it MariaDB thinks that to read and sort all is cheaper than 50 rows by an index."""
LARGE = ("penstock_jobs", "penstock_audit")


def _id(number: int) -> str:
    return first_id(START + timedelta(minutes=number))


def _search(ledger: Database, text: str) -> None:
    with contextlib.suppress(JobNotFound):
        full_id(ledger, text)
    for filter in (JobFilter(key=text), JobFilter(tenant=text)):
        find_page(ledger, filter, limit=2)


PAGES: dict[str, Callable[[Database], object]] = {
    "job": lambda ledger: (show(ledger, _id(7)), related(ledger, _id(7)), audit.find(ledger, subject=_id(7))),
    "jobs that run": lambda ledger: find_page(ledger, JobFilter(states=(State.RUNNING,))),
    "jobs of a kind that run": lambda ledger: find_page(ledger, JobFilter(states=(State.RUNNING,), kind="k7")),
    "jobs of no kind": lambda ledger: find_page(ledger, JobFilter(kind="none")),
    "jobs of no tenant": lambda ledger: find_page(ledger, JobFilter(tenant="none")),
    "count of no tenant": lambda ledger: count(ledger, JobFilter(tenant="none")),
    "dead letters": lambda ledger: (failure_groups.groups(ledger), failure_groups.trend(ledger, ["f7"])),
    "dead letters, replayed": lambda ledger: dead_letters.find(ledger, Selection(decided="replayed")),
    "dead letters, a group": lambda ledger: dead_letters.find(ledger, Selection(group="f7")),
    "dead letters of a key": lambda ledger: dead_letters.find(ledger, Selection(key="key7")),
    "overview": lambda ledger: (
        rates.report(ledger, timedelta(days=1)),
        fleet.open_dead_letters(ledger),
        fleet.count_due(ledger),
        fleet.lateness(ledger),
        fleet.waiting_kinds(ledger, 20_000),
        fleet.count_resting(ledger),
        fleet.oldest_ended(ledger, 100),
    ),
    "error rates": lambda ledger: rates.error_counts(ledger, timedelta(minutes=15)),
    "schedules": lambda ledger: (schedules.recorded_schedules(ledger), schedules.runs(ledger, "nightly")),
    "workflows": lambda ledger: (workflow_commands.find(ledger), workflow_commands.find(ledger, kind="k7")),
    "workers": lambda ledger: read_members(ledger, timedelta(seconds=30)),
    "limits": limit_waits.counts,
    "outboxes": lambda ledger: stats.outboxes(ledger, [], most=1000),
    "alerts": lambda ledger: (read_alerts(ledger, Settings().alerts), read_firings(ledger)),
    "audit": audit.find,
    "audit of a person": lambda ledger: audit.find(ledger, actor="ann7"),
    "audit of an act": lambda ledger: audit.find(ledger, acts=("edit",)),
    "audit of acts": lambda ledger: audit.find(ledger, acts=("edit", "none")),
    "audit of a subject": lambda ledger: audit.find(ledger, subject="job7"),
    "audit of a time": lambda ledger: audit.find(
        ledger, since=START + timedelta(minutes=5), until=START + timedelta(minutes=9)
    ),
    "audit of a person, by subject and time": lambda ledger: audit.find(
        ledger, actor="ann7", subject="job7", since=START
    ),
    "search for an id": lambda ledger: _search(ledger, _id(7)),
    "search for the beginning of an id": lambda ledger: _search(ledger, _id(7)[:16]),
    "search for a key": lambda ledger: _search(ledger, "key7"),
    "search for a tenant": lambda ledger: _search(ledger, "t7"),
    "search for nothing": lambda ledger: _search(ledger, "nothing like it"),
}


def test_no_page_reads_a_large_table_in_whole(filled: Database) -> None:
    whole = {page: plans for page, read in PAGES.items() if (plans := _whole_reads(filled, read))}
    assert not whole, "\n".join(f"{page}: {plans}" for page, plans in whole.items())


def _whole_reads(ledger: Database, read_page: Callable[[Database], object]) -> list[Any]:
    """The plans of a page's statements that read a large table in whole."""
    statements: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT") and any(table in statement for table in LARGE):
            statements.append((statement, values))

    sa.event.listen(ledger.engine, "before_cursor_execute", keep)
    try:
        read_page(ledger)
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", keep)
    plans = []
    for statement, values in statements:
        explain = "EXPLAIN QUERY PLAN " if ledger.dialect == "sqlite" else "EXPLAIN "
        with ledger.engine.connect() as connection:
            rows = [tuple(row) for row in connection.exec_driver_sql(explain + statement, values)]
        if steps := _read_in_whole(ledger.dialect, rows, statement):
            plans.append((steps, statement, rows))
    return plans


def test_a_read_of_a_whole_table_is_noticed(filled: Database) -> None:
    reads: list[sa.Select[Any]] = [
        sa.select(jobs.c.id).where(jobs.c.error == "x"),
        sa.select(audit_log.c.id).where(audit_log.c.detail == "x").order_by(audit_log.c.detail).limit(5),
        sa.select(sa.func.count()).select_from(jobs),
    ]
    for select in reads:
        assert _whole_reads(filled, lambda ledger, select=select: ledger.read(lambda it: it.execute(select).all()))  # type: ignore[misc]


def _read_in_whole(dialect: str, rows: list[tuple[Any, ...]], statement: str) -> list[Any]:
    """Steps of a plan that read all of a large table, or of an index of it without a LIMIT that ends it early."""
    large = "|".join(LARGE)
    bounded = " LIMIT " in statement.replace("\n", " ")
    if dialect == "sqlite":
        scans = [row for row in rows if re.match(rf"SCAN ({large})\b", row[3])]
        sorted_parts = {row[1] for row in rows if "TEMP B-TREE FOR ORDER BY" in row[3] or "GROUP BY" in row[3]}
        return [row for row in scans if "USING" not in row[3] or not bounded or row[1] in sorted_parts]
    if dialect == "postgresql":
        lines = [row[0] for row in rows]
        scans = [line for line in lines if re.search(rf"Seq Scan on ({large})\b", line)]
        indexed = [at for at, line in enumerate(lines) if re.search(rf"Index (Only )?Scan .*on ({large})\b", line)]
        walks = [lines[at] for at in indexed if not any("Index Cond" in line for line in lines[at + 1 : at + 2])]
        return scans + [line for line in walks if not bounded or any("Sort  (" in line for line in lines)]
    tables = [row for row in rows if row[2] in LARGE]
    return [row for row in tables if row[3] == "ALL" or (row[3] == "index" and (not bounded or "filesort" in row[-1]))]


@pytest.fixture
def filled(ledger: Database) -> Database:
    common = due.waiting(encode(Note()))
    rows = [
        common
        | {"id": _id(number), "enqueued_at": START + timedelta(minutes=number), "due_at": None}
        | {"state": "dead" if number % 10 == 0 else "succeeded", "finished_at": START + timedelta(minutes=number + 1)}
        | {"kind": f"k{number % 50}", "tenant": f"t{number % 50}", "key": f"key{number}"}
        | ({"state": "running", "finished_at": None} if number > ROWS - 20 else {})
        for number in range(ROWS)
    ]
    letter_rows = [
        {"id": row["id"], "kind": row["kind"], "queue": "q", "reason": "failed", "detail": "E: x"}
        | {"fingerprint": f"f{number % 50}", "created_at": row["finished_at"], "replayed_at": None}
        for number, row in enumerate(rows)
        if row["state"] == "dead"
    ]
    for row in letter_rows[::2]:
        row["replayed_at"] = datetime.now(UTC)
    audit_rows = [
        {"id": f"a{number:05}", "at": START + timedelta(minutes=number), "actor": f"ann{number % 50}", "detail": DETAIL}
        | {
            "act": "edit" if number % 50 == 0 else "cancel",
            "subject_kind": "job",
            "subject": f"job{number}",
            "count": 1,
        }
        for number in range(ROWS)
    ]

    def insert_rows(connection: sa.Connection) -> None:
        ledger.execute_many(connection, ledger.insert(jobs), rows)
        connection.execute(sa.insert(letters), letter_rows)
        connection.execute(sa.insert(audit_log), audit_rows)

    ledger.write(insert_rows)
    word = "TABLE " if ledger.dialect in ("mysql", "mariadb") else ""
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in (jobs, letters, audit_log, workflows):
            if ledger.dialect != "sqlite":  # which no one analyzes
                connection.execute(sa.text(f"ANALYZE {word}{table.name}"))
    return ledger
