"""`penstock queues`."""

from __future__ import annotations

from typing import Any

import typer

from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.handlers.discovery import discover

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_queues(imports: Imports = None, as_json: AsJson = False) -> None:
    """List every queue: who consumes it, what waits in the broker, and what the ledger keeps or runs of it."""
    from penstock.config.errors import LedgerUnavailable
    from penstock.ledger.members import heartbeats
    from penstock.ledger.members.roster import Roster
    from penstock.ledger.queries import jobs
    from penstock.producers.senders import open_sender_from
    from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
    from penstock.schemas.states import State

    discover(imports or ())
    settings = open_settings()
    states = (State.SCHEDULED, State.RETRYING, State.RUNNING, State.DEAD)
    counted: dict[str, dict[str, int]] = {}
    alive: dict[str, int] | None = None
    names = {DISPATCHER_QUEUE} | registry.queues() | set(settings.queues)
    try:
        with open_ledger(settings) as database:
            counted = jobs.counts(database, states)
            alive = database.read(Roster.read).consumers()
            names |= set(heartbeats.known_kinds(database).values()) | set(counted)
    except LedgerUnavailable as error:
        typer.echo(f"penstock: {error}; only the broker is shown", err=True)
    sender = open_sender_from(settings)
    try:
        depths = sender.depths(sorted(names))
    finally:
        sender.close()
    rows: list[dict[str, Any]] = []
    for name in sorted(names):
        one = settings.queue(name)
        engine = None if name == DISPATCHER_QUEUE else one.engine
        numbers = {str(state): counted.get(name, {}).get(state, 0) for state in states}
        rows.append({"queue": name, "engine": engine, "workers": None if alive is None else alive.get(name, 0)})
        rows[-1] |= {"waiting": depths[name], **numbers, "max_length": one.max_length}
    columns = ("queue", "engine", "workers", "waiting", *map(str, states), "max_length")
    print_rows(rows, columns, as_json=as_json, empty="no queues")
