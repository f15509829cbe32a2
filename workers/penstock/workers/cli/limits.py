"""`penstock limits`."""

from __future__ import annotations

from typing import Any

import typer

from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson
from penstock.workers.cli.common.output import print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings


def add_to(app: typer.Typer) -> None:
    app.command()(limits)


def limits(as_json: AsJson = False) -> None:
    """List the limits that workers have told of: what runs under each, and what waits.

    A limit by tenant, key and so on has a line for each share that is in use; what it is a share of is not kept.
    """
    from penstock.ledger.rows import limit_waits
    from penstock.producers.limits import open_store
    from penstock.producers.limits.rules import Rule

    settings = open_settings()
    store = open_store(settings)
    if store is None:
        typer.echo("penstock: there is no Redis that limits are kept in; set PENSTOCK_LIMITS_URL", err=True)
        raise typer.Exit(FAILED)
    try:
        with open_ledger(settings) as database:
            waiting = limit_waits.counts(database)
        rules, slots = store.rules(), sorted(store.used() | set(waiting))
        named = {Rule.of_slot(slot)[0] for slot in slots}
        slots = sorted([*slots, *(f"{name}:" for name in rules if name not in named)])
        uses = store.look(slots)
    finally:
        store.close()
    rows: list[dict[str, Any]] = []
    for slot, use in zip(slots, uses, strict=True):
        name, share = Rule.of_slot(slot)
        text = rules[name].text if name in rules else None
        rows.append({"limit": name, "rule": text, "share": share or None, "running": len(use.running)})
        rows[-1] |= {"about_to_run": len(use.woken), "waiting": waiting.get(slot, 0)}
    columns = ("limit", "rule", "share", "running", "about_to_run", "waiting")
    print_rows(rows, columns, as_json=as_json, empty="no limits")
