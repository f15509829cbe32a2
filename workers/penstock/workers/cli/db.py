"""`penstock db`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer

from penstock.workers.cli.common.options import AsJson
from penstock.workers.cli.common.output import echo, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings

app = typer.Typer(no_args_is_help=True, help="Set up and upgrade the ledger's tables.")


@app.command()
def upgrade() -> None:
    """Bring the ledger's tables up to date. Safe to repeat, and to run several at a time."""
    from penstock.ledger.sql.upgrade import upgrade as run_upgrade

    with open_ledger() as database:
        echo(f"the ledger is at revision {run_upgrade(database)}")


@app.command()
def current(as_json: AsJson = False) -> None:
    """Print the ledger's revision, and the revision that this program needs."""
    from penstock.ledger.sql import upgrade as upgrades

    with open_ledger() as database:
        revision, head = upgrades.current(database), upgrades.head()
    if as_json:
        print_json({"current": revision, "head": head})
    elif not upgrades.is_known(revision):
        echo(f"{revision}, of a newer version; this one knows those up to {head}")
    elif revision == head:
        echo(f"{revision}, up to date")
    else:
        echo(f"{revision or 'not set up'}; run: penstock db upgrade (to {head})")


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete rows that are older than the retention settings. The dispatcher does this every few minutes."""
    from penstock.ledger.retention.pruning import Pruning
    from penstock.producers.storage import make_storage

    settings = open_settings()
    storage = make_storage(settings.storage_url)
    try:
        with open_ledger(settings) as database:
            counts = Pruning(database, settings.retention, lambda: storage, dry_run=dry_run).run()
    finally:
        storage.close()
    rows = [{"what": what, "would be deleted" if dry_run else "deleted": count} for what, count in counts.items()]
    if as_json:
        print_json({"dry_run": dry_run, "counts": counts})
    else:
        print_rows(rows, tuple(rows[0]) if rows else (), as_json=False, empty="nothing to delete")


@app.command("stats")
def show_stats(as_json: AsJson = False) -> None:
    """Print the size of each table and outbox, the jobs in each state, and when the next are pruned."""
    from penstock.ledger.queries import stats

    settings = open_settings()
    with open_ledger(settings) as database:
        tables = [asdict(table) for table in stats.tables(database)]
        states = [asdict(state) for state in stats.states(database, settings.retention)]
        outboxes = [asdict(outbox) for outbox in stats.outboxes(database, settings.outbox_urls)]
    if as_json:
        print_json({"tables": tables, "states": states, "outboxes": outboxes})
        return
    people = [table | {"size": _size(table["bytes"])} for table in tables]
    print_rows(people, ("table", "rows", "size"), as_json=False, empty="no tables")
    for state in states:
        state["kept"] = _kept(state)
    print_rows(states, ("state", "jobs", "oldest", "kept", "next_prune"), as_json=False, empty="no jobs")
    print_rows(outboxes, ("outbox", "jobs", "lag_seconds", "trouble"), as_json=False, empty="no outbox")


def _size(count: int | None) -> str | None:
    return None if count is None else f"{count / 2**20:,.1f} MiB"


def _kept(state: dict[str, Any]) -> str:
    kept: timedelta | None = state["kept"]
    if kept is not None:
        return f"{kept / timedelta(days=1):g} d"
    return "forever" if state["state"].final else ""
