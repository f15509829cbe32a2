"""The first answer of each page from a large ledger: `python -m benchmarks.programs.ledger_pages URL ROWS ROUNDS`.

URL is an empty ledger on PostgreSQL. It is filled with ROWS jobs of 30 days, by SQL alone: 200 kinds, 20 queues, 1,000
tenants, 2 % dead, 1 % waiting, a line of the audit log for 100 jobs. Prints JSON: page → milliseconds, one a round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from penstock.config.sections.retention import RetentionSettings
from penstock.config.settings import Settings
from penstock.ledger.alerts.overview import read_alerts, read_firings
from penstock.ledger.members.overview import read_members
from penstock.ledger.queries import dead_letters, failure_groups, fleet, rates, stats
from penstock.ledger.queries.jobs import JobFilter, find_page, full_id
from penstock.ledger.queries.selection import Selection
from penstock.ledger.retention.pruning import Pruning
from penstock.ledger.rows import audit
from penstock.ledger.schedules import commands as schedules
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows import commands as workflows
from penstock.producers.storage import make_storage
from penstock.schemas.states import State
from penstock.workers.fleet.queues import Fleet

LEASE = timedelta(seconds=30)
ID = "lpad(to_hex(({ms})::bigint), 12, '0')"
UUID = "substr(x, 1, 8) || '-' || substr(x, 9, 4) || '-7000-8000-' || lpad(to_hex(i), 12, '0')"
JOBS = f"""
INSERT INTO penstock_jobs (id, kind, queue, priority, delivery, state, version, payload, key, tenant, attempt, failures,
    crashes, fence, worker, cancel_requested, enqueued_at, due_at, started_at, finished_at, result, error, tags)
SELECT {UUID}, 'kind.k' || i * 7 % 200, 'queue' || i * 7 % 20, 'normal', 'at_least_once', state, 1,
    '{{"number": 1, "text": "twenty-four characters.."}}', CASE WHEN i % 10 = 0 THEN 'key-' || i END,
    CASE WHEN i % 3 > 0 THEN 'tenant-' || i * 31 % 1000 END, 1, 0, 0, 1, 'worker' || i % 200, false, at,
    CASE WHEN state IN ('scheduled', 'queued') THEN now() + i % 1000 * interval '1 min' END, at,
    CASE WHEN state IN ('succeeded', 'dead', 'cancelled') THEN at + interval '1 s' END, 'null',
    CASE WHEN state = 'dead' THEN 'ValueError: no invoice ' || i END, CASE WHEN i % 50 = 0 THEN '["nightly"]' END
FROM (
    SELECT i, at, {ID.format(ms="extract(epoch FROM at) * 1000")} AS x,
        CASE WHEN i % 100 < 2 THEN 'dead' WHEN i % 100 = 2 THEN 'scheduled' WHEN i % 100 = 3 THEN 'cancelled'
            WHEN i > :rows - 500 THEN 'running' WHEN i > :rows - 1000 THEN 'queued' ELSE 'succeeded' END AS state
    FROM (SELECT i, now() - (:rows - i) * interval '30 days' / :rows AS at FROM generate_series(:first, :last) i) t
) u
"""
INDEXES = sa.text(
    "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'penstock_jobs' AND indexname LIKE 'ix%'"
)
HISTOGRAM = "decode(repeat('0100000000', 60), 'hex')"
OTHERS = (
    """
    INSERT INTO penstock_job_terms (term, enqueued_at, job_id)
    SELECT md5('nightly'), enqueued_at, id FROM penstock_jobs WHERE tags IS NOT NULL
    """,
    """
    INSERT INTO penstock_attempts (job_id, fence, number, worker, started_at, finished_at, outcome, error)
    SELECT id, 1, 1, worker, started_at, finished_at, 'dead', error FROM penstock_jobs WHERE state = 'dead'
    """,
    """
    INSERT INTO penstock_dead_letters (id, kind, queue, reason, detail, fingerprint, created_at, replayed_at,
        discarded_at)
    SELECT id, kind, queue, 'failed', error, substr(md5((n % 500)::text), 1, 16), finished_at,
        CASE WHEN n % 3 = 0 THEN now() END, CASE WHEN n % 3 = 1 THEN now() END
    FROM (SELECT *, row_number() OVER (ORDER BY id) AS n FROM penstock_jobs WHERE state = 'dead') t
    """,
    """
    INSERT INTO penstock_audit (id, at, actor, act, subject_kind, subject, count, detail)
    SELECT md5(i::text), now() - i * interval '30 days' / (:rows / 100), 'person' || i % 50,
        (ARRAY['cancel', 'retry', 'replay', 'discard', 'edit'])[i % 5 + 1], 'job', 'job-' || i, 1, '{}'
    FROM generate_series(1, :rows / 100) i
    """,
    "INSERT INTO penstock_audit_subjects SELECT 'subject-' || i, md5(i::text) FROM generate_series(1, :rows / 100) i",
    """
    INSERT INTO penstock_workflows (id, kind, state, definition, graph, undo, started_at, finished_at)
    SELECT id, kind, CASE WHEN state = 'dead' THEN 'failed' ELSE 'succeeded' END, 'd', '{}', true, started_at,
        finished_at
    FROM penstock_jobs WHERE key LIKE '%00' AND state <> 'running'
    """,
    """
    INSERT INTO penstock_steps (workflow_id, number, step, state, done, failed, finished_at)
    SELECT id, 0, 'step' || s, 'succeeded', 0, 0, finished_at FROM penstock_workflows, generate_series(1, 5) s
    """,
    """
    INSERT INTO penstock_workers (name, engine, host, pid, queues, kinds, started_at, lease_until)
    SELECT 'worker' || i, 'celery', 'host', i, '["queue1"]', '{"kind.k1": "queue1"}', now(), now() + interval '1 day'
    FROM generate_series(0, 199) i
    """,
    """
    INSERT INTO penstock_alert_firings (id, alert, subject, condition, began_at, ended_at, detail, jobs)
    SELECT lpad(i::text, 12, '0'), 'late', 'queue1', 'depth', now(), now(), 'd', '[]' FROM generate_series(1, 10000) i
    """,
    f"""
    INSERT INTO penstock_rates (span, minute, cell, source, kind, queue, outcome, count, run_ms, wait_ms, run, wait,
        written_at)
    SELECT s.span, m - m % abs(s.span), md5(k::text || o), '', 'kind.k' || k, 'queue' || k % 20, o, 100, 1000, 1000,
        {HISTOGRAM}, {HISTOGRAM}, now()
    FROM (VALUES (1, 180), (10, 1620), (60, 43200), (1440, 43200)) s (span, kept),
        extract(epoch FROM now()) e, generate_series(e::bigint / 60 - s.kept, e::bigint / 60, s.span) m,
        generate_series(0, 199) k, (VALUES ('succeeded'), ('retry')) outcomes (o)
    """,
    """
    INSERT INTO penstock_rates (span, minute, cell, source, kind, queue, outcome, count, run_ms, wait_ms, run, wait,
        written_at)
    SELECT -span, minute, md5(outcome), '', '', '', outcome, sum(count), sum(run_ms), sum(wait_ms), (array_agg(run))[1],
        (array_agg(wait))[1], now()
    FROM penstock_rates WHERE span < 1440 GROUP BY span, minute, outcome
    """,
    f"""
    INSERT INTO penstock_rates (span, minute, cell, source, kind, queue, outcome, count, run_ms, wait_ms, run, wait,
        written_at)
    SELECT 0, extract(epoch FROM now())::bigint / 60 - m, md5(k::text), 'worker' || w, 'kind.k' || k, 'queue' || k % 20,
        'succeeded', 10, 100, 100, {HISTOGRAM}, {HISTOGRAM}, now()
    FROM generate_series(0, 2) m, generate_series(0, 199) k, generate_series(0, 4) w
    """,
)


def fill(database: Database, rows: int, at_once: int = 500_000) -> None:
    """Fill an empty ledger on PostgreSQL. The indexes of jobs are built at the end, which is several times faster."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for setting in ("synchronous_commit = off", "maintenance_work_mem = '512MB'"):
            connection.execute(sa.text(f"SET {setting}"))
        indexes = connection.execute(INDEXES).all()
        for name, _ in indexes:
            connection.execute(sa.text(f"DROP INDEX {name}"))
        for first in range(1, rows + 1, at_once):
            connection.execute(_statement(JOBS, rows=rows, first=first, last=min(first + at_once - 1, rows)))
        for _, definition in indexes:
            connection.execute(sa.text(definition))
        for statement in OTHERS:
            connection.execute(_statement(statement, **({"rows": rows} if ":rows" in statement else {})))
        connection.execute(sa.text("VACUUM ANALYZE"))


def _statement(sql: str, **numbers: int) -> sa.TextClause:
    return sa.text(sql).bindparams(*(sa.bindparam(name, value, sa.Integer) for name, value in numbers.items()))


def pages(database: Database) -> dict[str, Callable[[], object]]:
    """Page → the queries of its first answer, without those to the broker."""
    now = datetime.now(UTC)
    hour_ago = now - timedelta(hours=1)
    some = find_page(database, limit=1).rows[0].id
    open_groups = [group.fingerprint for group in failure_groups.groups(database, limit=200)]
    retention = RetentionSettings()

    def jobs(**filter: object) -> Callable[[], object]:
        return lambda: find_page(database, JobFilter(**filter))  # type: ignore[arg-type]

    def search(text: str) -> Callable[[], object]:
        def run() -> None:
            try:
                full_id(database, text)
            except Exception as error:
                if type(error).__name__ not in ("JobNotFound", "AmbiguousId"):
                    raise
            find_page(database, JobFilter(key=text), limit=2)
            find_page(database, JobFilter(tenant=text), limit=2)

        return run

    def acts(**filter: object) -> Callable[[], object]:
        return lambda: audit.find(database, **filter)  # type: ignore[arg-type]

    return {
        "jobs": jobs(),
        "jobs of a kind": jobs(kind="kind.k7"),
        "jobs of no kind": jobs(kind="none"),
        "jobs of a tenant": jobs(tenant="tenant-7"),
        "jobs of no tenant": jobs(tenant="none"),
        "jobs of a queue": jobs(queue="queue7"),
        "jobs of no queue": jobs(queue="none"),
        "jobs that died": jobs(states=(State.DEAD,)),
        "jobs that died lately": jobs(states=(State.DEAD,), finished_since=hour_ago),
        "jobs that run": jobs(states=(State.RUNNING,)),
        "jobs that succeeded": jobs(states=(State.SUCCEEDED,)),
        "jobs with an error": jobs(error="nothing like it"),
        "jobs with a tag": jobs(tags=("nightly",)),
        "jobs that ended lately": jobs(finished_since=hour_ago),
        "dead letters": lambda: failure_groups.groups(database, limit=200),
        "dead letters, trend": lambda: failure_groups.trend(database, open_groups),
        "dead letters, replayed": lambda: failure_groups.groups(database, Selection(decided="replayed"), limit=200),
        "dead letters, a group": lambda: dead_letters.find(database, Selection(group=open_groups[0])),
        "overview, 1 h": lambda: rates.report(database, timedelta(hours=1)),
        "overview, 24 h": lambda: rates.report(database, timedelta(hours=24)),
        "overview, 7 d": lambda: rates.report(database, timedelta(days=7)),
        "overview, one kind, 7 d": lambda: rates.report(database, timedelta(days=7), kinds=["kind.k7"]),
        "overview, dead letters": lambda: fleet.open_dead_letters(database),
        "overview, due": lambda: (fleet.count_due(database), fleet.lateness(database)),
        "overview, kinds that wait": lambda: fleet.waiting_kinds(database, 20_000),
        "overview, retention": lambda: fleet.oldest_ended(database, 1000),
        "queues": lambda: Fleet.read(database, LEASE),
        "schedules": lambda: schedules.recorded_schedules(database),
        "workflows": lambda: workflows.find(database),
        "workflows that failed": lambda: workflows.find(database, kind="kind.k7"),
        "workers": lambda: read_members(database, LEASE),
        "outboxes": lambda: stats.outboxes(database, [], most=10_001),
        "alerts": lambda: (read_alerts(database, Settings().alerts), read_firings(database)),
        "alerts, error rate": lambda: rates.error_counts(database, timedelta(minutes=15)),
        "audit": acts(),
        "audit of a person": acts(actor="person7"),
        "audit of no person": acts(actor="none"),
        "audit of acts": acts(acts=("edit", "none")),
        "audit of a subject": acts(subject="subject-77"),
        "audit of a time": acts(until=hour_ago),
        "search, id": search(some[:20]),
        "search, key": search("key-7000"),
        "search, tenant": search("tenant-7"),
        "search, nothing": search("nothing like it"),
        "prune --dry-run": lambda: Pruning(database, retention, lambda: make_storage("file:none"), dry_run=True).run(),
    }


def measure(database: Database, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    every = pages(database)
    for _ in range(rounds):
        for name, ask in every.items():
            began = time.perf_counter()
            ask()
            times.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    return times


if __name__ == "__main__":
    ledger = Database(sys.argv[1])
    if int(sys.argv[2]):
        fill(ledger, int(sys.argv[2]))
    print(json.dumps(measure(ledger, int(sys.argv[3]))))
