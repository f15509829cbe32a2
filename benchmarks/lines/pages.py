"""The first answer of each of the console's pages, from a large ledger on PostgreSQL."""

from __future__ import annotations

from statistics import median

from benchmarks.plan import Plan, say
from benchmarks.programs import ledger_pages
from benchmarks.tables import Table
from penstock.ledger.sql.database import Database

MOST_MS = 200.0
PRUNE = "prune --dry-run"
"""A command, which may take longer than a page."""


def postgres(plan: Plan) -> Table:
    rows = plan.rows if plan.scale == 1.0 else min(plan.rows, 100_000)
    table = Table(f"First answer of each page, {rows:,} jobs, PostgreSQL", "ms", more_is_better=False)
    if not plan.servers.has_postgres:
        return table
    plan.servers.clear("redis")
    database = Database(plan.servers.postgres_url)
    try:
        say(f"pages: {rows:,} jobs are inserted")
        ledger_pages.fill(database, rows)
        for page, times in ledger_pages.measure(database, plan.rounds).items():
            for value in times:
                table.add(page, value, peer=False)
    finally:
        database.close()
    table.limits = {page: MOST_MS for page in table.values if page != PRUNE} | {PRUNE: 3000.0}
    slow = [page for page, values in table.values.items() if values[0] > table.limits[page] >= median(values)]
    if slow:
        table.notes.append(f"over its limit in the first round alone: {', '.join(slow)}")
    return table
