"""`penstock limits`: what holds jobs up, and limits changed at run time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.cli.fleet.pauses import Reason, Until

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database
    from penstock.producers.limits.store import LimitStore

app = typer.Typer()
Limit = Annotated[str, typer.Argument(metavar="LIMIT", help="As `limits list` names it.")]
Share = Annotated[
    str | None,
    typer.Option(metavar="VALUE", help="Only for this value of what jobs share it by, such as a tenant, or its hash."),
]


@app.callback(invoke_without_command=True)
def limits(context: typer.Context, as_json: AsJson = False) -> None:
    """See limits, and change their numbers while workers run."""
    if context.invoked_subcommand is None:
        list_limits(as_json)


@app.command("list")
def list_limits(as_json: AsJson = False) -> None:
    """List the limits that workers have reported: how many jobs run and wait under each.

    A limit by tenant, key or field has a line for each share that is in use; its value is not stored.
    """
    from penstock.workers.fleet.limits import as_values, view_limits

    with _opened() as (database, store):
        views = view_limits(database, store)
    rows = [
        {"limit": view.limit, "rule": view.rule, "set_to": view.change and view.change.value, "share": view.share}
        | {"running": len(view.running), "about_to_run": len(view.woken), "waiting": view.waiting}
        | {"change": as_values(view.change)}
        for view in views
    ]
    columns = ("limit", "rule", "set_to", "share", "running", "about_to_run", "waiting")
    print_rows(rows, columns, as_json=as_json, empty="no limits")


@app.command("set")
def set_limit(
    limit: Limit,
    most: Annotated[int, typer.Argument(min=1, help="Jobs at a time, or in the period of a rate.")],
    share: Share = None,
    reason: Reason = None,
    until: Until = None,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Change the number of a limit for all workers, while they run. It holds over restarts, until it is reset."""
    from penstock.workers.fleet import limits as changes

    with _opened() as (database, store):
        result = changes.set_limit(database, store, limit, most, share=share, actor=actor, reason=reason, until=until)
    end = f" until {result.until:%Y-%m-%d %H:%M:%SZ}" if result.until else ""
    echo(f"{result.target} is {most:,}{end}, within two seconds")


@app.command("reset")
def reset_limit(limit: Limit, share: Share = None, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Let a limit be as it is declared again."""
    from penstock.workers.fleet import limits as changes

    with _opened() as (database, store):
        ended = changes.reset_limit(database, store, limit, share=share, actor=actor)
    if ended is None:
        echo(f"penstock: limit {limit!r} is not set{' for this share' if share else ''}", err=True)
        raise typer.Exit(FAILED)
    echo(f"{ended.target} is as declared, within two seconds; it was set to {ended.value:,} by {ended.actor}")


@contextmanager
def _opened() -> Iterator[tuple[Database, LimitStore]]:
    """The ledger and the store of limits. Raises Exit without a store."""
    from penstock.producers.limits import open_store

    settings = open_settings()
    store = open_store(settings)
    if store is None:
        echo("penstock: limits need a Redis; set PENSTOCK_LIMITS_URL", err=True)
        raise typer.Exit(FAILED)
    try:
        with open_ledger(settings) as database:
            yield database, store
    finally:
        store.close()
