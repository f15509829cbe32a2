"""`penstock queues`: how much waits where and who consumes it; pauses; emptying and tuning a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.producers.senders.known_queues import KnownQueues
from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.cli.fleet import pauses
from penstock.workers.cli.fleet.pauses import Reason, Until
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.config.settings import Settings

app = typer.Typer(no_args_is_help=True, help="See, pause, purge, move and tune queues.")
Queue = Annotated[str, typer.Argument(metavar="QUEUE")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


@app.command("list")
def list_queues(imports: Imports = None, as_json: AsJson = False) -> None:
    """List every queue: its workers, its pause, the jobs that wait in the broker, and those in the ledger by state."""
    from penstock.config.errors import LedgerUnavailable
    from penstock.ledger.members.leases import await_renewal
    from penstock.ledger.queries import jobs
    from penstock.producers.senders import open_sender_from
    from penstock.schemas.states import State
    from penstock.workers.fleet.queues import Fleet, as_values, view_queues

    discover(imports or ())
    settings = open_settings()
    states = (State.SCHEDULED, State.RETRYING, State.RUNNING, State.DEAD)
    counted: dict[str, dict[str, int]] = {}
    fleet: Fleet | None = None
    names: list[str] = []
    try:
        with open_ledger(settings) as database:
            counted = jobs.counts(database, states)
            await_renewal(database, settings.lease)
            fleet = Fleet.read(database, settings.lease)
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
        views = view_queues(settings, fleet or Fleet(), sender, names)
    finally:
        sender.close()
    rows: list[dict[str, Any]] = []
    for view in views:
        numbers = {str(state): counted.get(view.name, {}).get(state, 0) for state in states}
        recorded = fleet is not None
        rows.append({"queue": view.name, "engine": ", ".join(view.engines) or None})
        rows[-1] |= {"workers": len(view.workers) if recorded else None, "consumers": view.consumers}
        rows[-1] |= {"paused": view.pause.target if view.pause else "", "waiting": view.waiting, **numbers}
        rows[-1] |= {"max_length": view.max_length, "declared_engine": view.declared, "lanes": view.lanes}
        rows[-1] |= {"names": [worker.name for worker in view.workers], "left": [worker.name for worker in view.left]}
        rows[-1] |= {"pause": as_values(view.pause), "concurrency": view.concurrency, "weight": view.weight}
    columns = ("queue", "engine", "workers", "consumers", "paused", "waiting", *map(str, states), "max_length")
    print_rows(rows, columns, as_json=as_json, empty="no queues")


@app.command("pause")
def pause_queue(queue: Queue, reason: Reason = None, until: Until = None, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Pause a queue: its jobs wait in the broker, and its workers go on with their other queues."""
    settings = open_settings()
    with open_ledger(settings) as database:
        recorded = queue in set(KnownQueues(settings, database))
    pauses.pause("queue", queue, actor, reason, until, "" if recorded else "; no worker and no broker knows this queue")


@app.command("resume")
def resume_queue(queue: Queue, actor: Actor = None) -> None:  # type: ignore[assignment]
    """End the pause of a queue."""
    pauses.resume("queue", queue, actor)


@app.command("purge")
def purge(queue: Queue, reason: Reason = None, yes: Yes = False, actor: Actor = None, imports: Imports = None) -> None:  # type: ignore[assignment]
    """Remove the jobs that wait in the broker. Those on record become cancelled; running and delayed ones go on."""
    from penstock.workers.fleet.waiting import purge_queue

    settings = _confirmed(queue, "be removed; that cannot be undone", imports, yes)
    with open_ledger(settings) as database:
        done = purge_queue(settings, database, queue, actor=actor, reason=reason)
    echo(f"{done.recorded + done.unknown:,} jobs are removed; {done.recorded:,} were on record, and are cancelled")
    _say_kept(done.kept)


@app.command("move")
def move(
    queue: Queue,
    to: Annotated[str, typer.Option("--to", metavar="QUEUE", help="Where they go.")],
    yes: Yes = False,
    actor: Actor = None,  # type: ignore[assignment]
    imports: Imports = None,
) -> None:
    """Move the jobs that wait in the broker to another queue, such as one of the other engine.

    Later jobs still go to the first: their producers or kinds say where.
    """
    from penstock.ledger.members.leases import await_renewal
    from penstock.workers.fleet.queues import Fleet
    from penstock.workers.fleet.waiting import move_queue

    settings = _confirmed(queue, f"be moved to {to!r}", imports, yes)
    with open_ledger(settings) as database:
        await_renewal(database, settings.lease)
        fleet = Fleet.read(database, settings.lease)
        done = move_queue(settings, database, queue, to, actor=actor)
    echo(f"{done.recorded + done.unknown:,} jobs are moved to {to!r}; the dispatcher sends them there")
    if not fleet.roster.consuming(to):
        echo(f"penstock: no live worker consumes {to!r}", err=True)
    if not fleet.roster.dispatchers:
        echo("penstock: no dispatcher lives; they wait in the ledger", err=True)
    _say_kept(done.kept)


@app.command("tune")
def tune(
    queue: Queue,
    concurrency: Annotated[
        int | None, typer.Option(min=0, help="Jobs at a time of each of its workers; 0: as set.")
    ] = None,
    weight: Annotated[int | None, typer.Option(min=0, help="Its share beside other queues; 0: as set.")] = None,
    reason: Reason = None,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Change the concurrency of a queue's workers, or its weight, while they run. It holds over restarts."""
    from penstock.ledger.members import controls

    values: tuple[tuple[controls.Setting, int | None], ...] = (("concurrency", concurrency), ("weight", weight))
    if all(value is None for _, value in values):
        raise typer.BadParameter("give --concurrency or --weight")
    with open_ledger() as database:
        for what, value in values:
            if value is not None:
                controls.tune(database, queue, what, value or None, actor=actor, reason=reason)
                echo(f"{what} of queue {queue!r} is {value or 'as the settings say'}, within two seconds")


def _confirmed(queue: str, what: str, imports: list[str] | None, yes: bool) -> Settings:
    """The settings, after a question that names the number of jobs."""
    from penstock.producers.senders import open_sender_from

    discover(imports or ())
    settings = open_settings()
    sender = open_sender_from(settings)
    try:
        waiting = sender.depths([queue])[queue]
    finally:
        sender.close()
    if not waiting:
        echo(f"no job waits in the broker in queue {queue!r}")
        raise typer.Exit
    if not yes:
        typer.confirm(f"{waiting:,} jobs of queue {queue!r} will {what}. Go on?", abort=True)
    return settings


def _say_kept(count: int) -> None:
    if count:
        echo(f"penstock: {count:,} messages stay: they run, or cannot be read", err=True)
        raise typer.Exit(FAILED)
