"""`penstock kinds`: which kinds there are, who handles them, and pauses of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.cli.fleet import pauses
from penstock.workers.cli.fleet.pauses import Reason, Until
from penstock.workers.handlers.discovery import discover

app = typer.Typer(no_args_is_help=True, help="See, pause and resume kinds.")
Kind = Annotated[str, typer.Argument(metavar="KIND")]


@app.command("list")
def list_kinds(imports: Imports = None, as_json: AsJson = False) -> None:
    """List every kind that a worker has reported: its queue, the live workers that handle it, and its pause."""
    from penstock.ledger.members import heartbeats
    from penstock.ledger.members.leases import await_renewal
    from penstock.ledger.rows.waits import limit_waits
    from penstock.schemas.jobs.kind import registry
    from penstock.workers.fleet.queues import Fleet, as_values

    discover(imports or ())
    rows: list[dict[str, Any]] = []
    settings = open_settings()
    with open_ledger(settings) as database:
        await_renewal(database, settings.lease)
        fleet = Fleet.read(database, settings.lease)
        queues = heartbeats.known_kinds(database) | {kind.name: kind.queue for kind in registry}
        paused = {pause.name for pause in fleet.controls.pauses if pause.scope == "kind"}
        for name in sorted(queues.keys() | paused):
            queue = queues.get(name)
            pause = fleet.controls.pause_of(queue, {name})
            waits = 0 if pause is None else limit_waits.count(database, pause.slot, 10_001)
            workers = sum(name in worker.kinds for worker in fleet.roster.workers)
            held = None if pause is None or pause.scope != "kind" else waits
            text = "" if pause is None else f"{pause.target}, by {pause.actor}"
            row = {"kind": name, "queue": queue, "workers": workers, "paused": text, "held_back": held}
            rows.append(row | {"pause": as_values(pause)})
    print_rows(rows, ("kind", "queue", "workers", "paused", "held_back"), as_json=as_json, empty="no kinds")


@app.command("pause")
def pause_kind(kind: Kind, reason: Reason = None, until: Until = None, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Pause a kind: its jobs wait in the ledger, and other kinds of its queue go on."""
    from penstock.ledger.members import heartbeats

    with open_ledger() as database:
        handled = heartbeats.known_kinds(database)
    pauses.pause("kind", kind, actor, reason, until, "" if kind in handled else "; no worker has reported this kind")


@app.command("resume")
def resume_kind(kind: Kind, actor: Actor = None) -> None:  # type: ignore[assignment]
    """End the pause of a kind: its jobs begin in their order."""
    pauses.resume("kind", kind, actor)
