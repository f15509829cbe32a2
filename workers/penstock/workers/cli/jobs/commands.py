"""`penstock jobs`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.schemas.states import State
from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, Imports, Limit, duration, moment, past
from penstock.workers.cli.common.output import echo, print_fields, print_json, print_rows
from penstock.workers.cli.common.session import for_each, open_ledger
from penstock.workers.cli.jobs import effects, erase, explain
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database

app = typer.Typer(no_args_is_help=True)

Ids = Annotated[list[str], typer.Argument(metavar="ID…", help="Jobs.")]
Chosen = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="Jobs, or give --key.")]
Key = Annotated[str | None, typer.Option(help="All jobs that have this key and have not ended.")]
Tenant = Annotated[str | None, typer.Option(help="With --key, only jobs of this tenant.")]


@app.command("list")
def list_jobs(
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only those of this kind.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only those of this queue.")] = None,
    key: Annotated[str | None, typer.Option(help="Only those with this key.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only those of this tenant.")] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help="Enqueued since: 1h, 2d, or a time.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the jobs in the ledger, newest first."""
    from penstock.ledger.queries import jobs

    with open_ledger() as database:
        rows = jobs.find(
            database, state=state, kind=kind, queue=queue, key=key, tenant=tenant, since=since, limit=limit
        )
    columns = ("id", "kind", "queue", "state", "attempt", "enqueued_at", "due_at", "key", "error")
    print_rows([row._asdict() for row in rows], columns, as_json=as_json, empty="no jobs")


@app.command()
def show(
    job_id: Annotated[str, typer.Argument(metavar="ID")], imports: Imports = None, as_json: AsJson = False
) -> None:
    """Show one job, its attempts, and the traceback of the last one (--json: of each).

    The fields' values and the result are hidden if no imported module defines the kind.
    """
    from penstock.ledger.queries import jobs
    from penstock.schemas.jobs.kind import registry

    discover(imports or ())
    with open_ledger() as database:
        row, ran = jobs.show(database, job_id)
    fields: dict[str, Any] = row._asdict()
    payload = json.loads(row.payload) or {}
    fields["payload"] = registry.redact(row.kind, payload)
    fields["embed"] = "present, not shown" if row.embed else None
    if row.state == State.QUEUED:
        fields["sent_at"], fields["due_at"] = row.due_at, None
    fields["result"] = None if row.result is None else registry.hide_in(row.kind, json.loads(row.result), payload)
    attempts = [attempt._asdict() for attempt in ran]
    if as_json:
        print_json(fields | {"attempts": attempts})
        return
    print_fields(fields)
    for attempt in attempts:
        echo()
        left_out = {"job_id", "number"} if attempt is attempts[-1] else {"job_id", "number", "traceback"}
        print_fields({"attempt": attempt["number"], **{k: v for k, v in attempt.items() if k not in left_out}})


@app.command()
def retry(
    ids: Ids,
    force: Annotated[bool, typer.Option("--force", help="Also run jobs again that succeeded.")] = False,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Run ended jobs again, now."""
    from penstock.ledger.transitions.replay import retry as retry_job

    discover(imports or ())
    for_each(ids, partial(retry_job, actor=actor, force=force), "scheduled")


@app.command()
def cancel(
    ids: Chosen = None,
    key: Key = None,
    kind: Annotated[
        str | None,
        typer.Option(help="The job's kind, if it still waits in the broker; with --key, only jobs of this kind."),
    ] = None,
    tenant: Tenant = None,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Cancel jobs: at once while they wait, through their worker while they run.

    With --key, jobs that are still in the broker are cancelled when a worker receives them.
    """
    from penstock.ledger.transitions.cancel import cancel_key, request_cancel

    _check_chosen(ids, key, tenant)
    discover(imports or ())

    def cancel_one(database: Database, job_id: str) -> str:
        state = request_cancel(database, job_id, actor=actor, kind=kind)
        return "is asked to stop" if state == State.RUNNING else str(state)

    if key is None:
        for_each(ids or (), cancel_one)
        return
    with open_ledger() as database:
        cancelled = cancel_key(database, key, actor=actor, kind=kind, tenant=tenant)
    _print_done(cancelled, "cancelled or asked to stop")


@app.command()
def reschedule(
    ids: Chosen = None,
    key: Key = None,
    kind: Annotated[str | None, typer.Option(help="With --key, only jobs of this kind.")] = None,
    tenant: Tenant = None,
    at: Annotated[datetime | None, typer.Option(parser=moment, metavar="TIME", help="The new due time.")] = None,
    after: Annotated[
        timedelta | None,
        typer.Option("--in", parser=duration, metavar="DURATION", help="How long from now, in place of --at; 0: now."),
    ] = None,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Change the due time of delayed jobs, snoozed jobs and retries."""
    from penstock.ledger.transitions import reschedule as move

    _check_chosen(ids, key, tenant or kind)
    if (at is None) == (after is None):
        raise typer.BadParameter("give --at or --in")
    due_at = at or datetime.now(UTC) + (after or timedelta())
    discover(imports or ())
    if key is None:
        for_each(ids or (), partial(move.reschedule, due_at=due_at, actor=actor), f"is due at {due_at.isoformat()}")
        return
    with open_ledger() as database:
        moved = move.reschedule_key(database, key, due_at, actor=actor, kind=kind, tenant=tenant)
    _print_done(moved, f"due at {due_at.isoformat()}")


def _check_chosen(ids: list[str] | None, key: str | None, with_key: str | None) -> None:
    if (key is None) == (not ids):
        raise typer.BadParameter("give the ids of jobs, or --key")
    if key is None and with_key is not None:
        raise typer.BadParameter("--kind and --tenant choose among the jobs of a --key")


def _print_done(ids: list[str], what: str) -> None:
    for job_id in ids:
        echo(job_id)
    echo(f"{what}: {len(ids):,}", err=True)


# Last, so that help begins with what is needed most.
explain.add_to(app)
effects.add_to(app)
erase.add_to(app)
