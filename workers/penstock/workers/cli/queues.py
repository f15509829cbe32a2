"""`penstock queues` and `penstock limits`: how much waits, and what holds it up."""

from __future__ import annotations

from typing import Any

import typer

from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.queues import KnownQueues
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.handlers.discovery import discover

app = typer.Typer(no_args_is_help=True)


def add_to(root: typer.Typer) -> None:
    root.command()(limits)


@app.command("list")
def list_queues(imports: Imports = None, as_json: AsJson = False) -> None:
    """List every queue: its workers, the jobs that wait in the broker, and its jobs in the ledger by state."""
    from penstock.config.errors import LedgerUnavailable
    from penstock.ledger.members.roster import Roster
    from penstock.ledger.queries import jobs
    from penstock.producers.senders import open_sender_from
    from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
    from penstock.schemas.states import State

    discover(imports or ())
    settings = open_settings()
    states = (State.SCHEDULED, State.RETRYING, State.RUNNING, State.DEAD)
    counted: dict[str, dict[str, int]] = {}
    alive: dict[str, int] | None = None
    names: list[str] = []
    try:
        with open_ledger(settings) as database:
            counted = jobs.counts(database, states)
            alive = database.read(Roster.read).consumers()
            queues = KnownQueues(settings, database)
            names = list(queues)
    except LedgerUnavailable as error:
        echo(f"penstock: {error}; only the broker is shown", err=True)
        queues = KnownQueues(settings, None)
        names = list(queues)
    if queues.trouble is not None:
        echo(f"penstock: {queues.trouble}", err=True)
    sender = open_sender_from(settings)
    try:
        depths = sender.depths(names)
    finally:
        sender.close()
    rows: list[dict[str, Any]] = []
    for name in names:
        queue = settings.queue(name)
        engine = None if name == DISPATCHER_QUEUE else queue.engine
        numbers = {str(state): counted.get(name, {}).get(state, 0) for state in states}
        rows.append({"queue": name, "engine": engine, "workers": None if alive is None else alive.get(name, 0)})
        rows[-1] |= {"waiting": depths[name], **numbers, "max_length": queue.max_length}
    columns = ("queue", "engine", "workers", "waiting", *map(str, states), "max_length")
    print_rows(rows, columns, as_json=as_json, empty="no queues")


def limits(as_json: AsJson = False) -> None:
    """List the limits that workers have reported: how many jobs run and wait under each.

    A limit by tenant, key or field has a line for each share that is in use; its value is not stored.
    """
    from penstock.ledger.rows import limit_waits
    from penstock.producers.limits import open_store
    from penstock.producers.limits.rules import Rule

    settings = open_settings()
    store = open_store(settings)
    if store is None:
        echo("penstock: limits need a Redis; set PENSTOCK_LIMITS_URL", err=True)
        raise typer.Exit(FAILED)
    try:
        with open_ledger(settings) as database:
            waiting = limit_waits.counts(database)
        rules, slots = store.rules(), sorted(store.used_slots() | set(waiting))
        named = {Rule.of_slot(slot)[0] for slot in slots}
        slots = sorted([*slots, *(f"{name}:" for name in rules if name not in named)])
        uses = store.uses(slots)
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
