"""`penstock workers`: see, drain and stop workers and dispatchers."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, duration
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings

app = typer.Typer(no_args_is_help=True, help="See, drain and stop workers and dispatchers.")

_NAMED = 3
"""Running jobs that a line of the table names."""

_Name = Annotated[str, typer.Argument(metavar="NAME")]
_Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for the audit log.")]
_AGAIN = "what started its process (systemd, Kubernetes, penstock up) may start another one"


@app.command("list")
def list_workers(
    since: Annotated[str, typer.Option(metavar="DURATION", help="List also those that ended within this time.")] = "1h",
    as_json: AsJson = False,
) -> None:
    """List the workers of both engines and the dispatchers: what each is, runs now, and how it ended."""
    from penstock.ledger.members.leases import await_renewal
    from penstock.ledger.members.overview import read_members

    settings = open_settings()
    with open_ledger(settings) as database:
        await_renewal(database, settings.lease)
        members = read_members(database, settings.lease, since=duration(since))
    if as_json:
        print_rows([status.fields() for status in members], (), as_json=True, empty="")
        return
    columns = (
        "name",
        "engine",
        "state",
        "version",
        "queues",
        "slots",
        "pool",
        "running",
        "memory",
        "started_at",
        "last_beat",
    )
    print_rows([_line(status) for status in members], columns, as_json=False, empty="no workers")


@app.command()
def drain(
    name: _Name,
    reason: _Reason = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Let a worker take no more jobs, finish those that it runs, however long they take, and end."""
    _order(name, "drain", actor, reason)


@app.command()
def stop(
    name: _Name,
    reason: _Reason = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Let a worker take no more jobs, finish what it can within grace_seconds, give the rest back, and end."""
    _order(name, "stop", actor, reason)


def _order(name: str, order: Any, actor: str, reason: str | None) -> None:
    from penstock.ledger.members.leases import await_renewal
    from penstock.ledger.members.orders import give_order

    settings = open_settings()
    with open_ledger(settings) as database:
        await_renewal(database, settings.lease)
        give_order(database, name, order, actor=actor, lease=settings.lease, reason=reason)
    echo(f"{name} is to {order}, and sees it at its next heartbeat; {_AGAIN}")


def _line(status: Any) -> dict[str, Any]:
    from penstock.config.printable import length

    member = status.member
    jobs = [f"{job.kind} {length(timedelta(seconds=job.seconds or 0))}" for job in status.running[:_NAMED]]
    more = len(status.running) - _NAMED
    running = ", ".join([*jobs, f"and {more:,} more"] if more > 0 else jobs)
    if status.abandoned:
        running = f"{status.abandoned:,} jobs, which others take over"
    ended = f" ({member.ended})" if member.ended else ""
    used = None if member.concurrency is None else f"{len(status.running)}/{member.concurrency}"
    memory = None if member.peak_memory_bytes is None else f"{member.peak_memory_bytes / 2**20:.0f} MiB"
    values: dict[str, Any] = status.fields()
    return values | {
        "state": f"{status.state}{ended}",
        "queues": ", ".join(member.queues),
        "slots": used,
        "pool": None if member.pool_pids is None else f"{len(member.pool_pids)} processes",
        "running": running,
        "memory": memory,
    }
