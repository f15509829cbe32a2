"""`penstock jobs retry`, `cancel` and `reschedule`: of jobs by their ids, or of all that match filters."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.schemas.states import State
from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import Imports, duration, moment
from penstock.workers.cli.common.output import echo
from penstock.workers.cli.common.session import for_each, open_ledger, open_settings
from penstock.workers.cli.jobs.filters import with_filters
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.ledger.queries.jobs import JobFilter
    from penstock.ledger.sql.database import Database
    from penstock.ledger.transitions.selected import Act, Progress
    from penstock.workers.cli.jobs.filters import Filters

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID…", help="Jobs, or the beginnings of their ids; or give filters.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count the jobs that match, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, whatever the number of jobs.")]


@with_filters()
def retry(
    ids: Ids = None,
    *,
    chosen: Filters,
    force: Annotated[bool, typer.Option("--force", help="Also run jobs again that succeeded.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Run ended jobs again, now."""
    from penstock.ledger.transitions.replay import retry as retry_job
    from penstock.ledger.transitions.selected import Retry

    discover(imports or ())
    if ids:
        _refuse_filters(chosen())
        _for_each(ids, partial(retry_job, actor=actor, force=force), "scheduled", dry_run)
    else:
        _act_on_all(_given(chosen()), Retry(force), actor, dry_run, yes, "scheduled")


@with_filters(
    kind=Annotated[
        str | None,
        typer.Option(help="Only those of this kind; with an ID, the kind of a job that still waits in the broker."),
    ]
)
def cancel(
    ids: Ids = None,
    *,
    chosen: Filters,
    dry_run: DryRun = False,
    yes: Yes = False,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Cancel jobs: at once while they wait, through their worker while they run.

    With --key, and no filters but --kind and --tenant, jobs that are still in the broker are cancelled when a worker
    receives them.
    """
    from penstock.ledger.transitions.cancel import cancel_key, request_cancel
    from penstock.ledger.transitions.selected import Cancel

    discover(imports or ())
    filter = chosen()
    kind = None if filter is None else filter.kind

    def cancel_one(database: Database, job_id: str) -> str:
        state = request_cancel(database, job_id, actor=actor, kind=kind)
        return "is asked to stop" if state == State.RUNNING else str(state)

    if ids:
        _refuse_filters(filter, "kind")
        _for_each(ids, cancel_one, "", dry_run)
        return
    filter = _given(filter)
    if filter.key is None or filter.given.keys() - {"key", "kind", "tenant"} or dry_run:
        _act_on_all(filter, Cancel(), actor, dry_run, yes, "cancelled or asked to stop")
        return
    with open_ledger() as database:
        cancelled = cancel_key(database, filter.key, actor=actor, kind=kind, tenant=filter.tenant)
    for job_id in cancelled:
        echo(job_id)
    echo(f"{len(cancelled):,} on record; others are cancelled when a worker meets them", err=True)


@with_filters()
def reschedule(
    ids: Ids = None,
    *,
    chosen: Filters,
    at: Annotated[datetime | None, typer.Option(parser=moment, metavar="TIME", help="The new due time.")] = None,
    after: Annotated[
        timedelta | None,
        typer.Option("--in", parser=duration, metavar="DURATION", help="How long from now, in place of --at; 0: now."),
    ] = None,
    to_queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="The queue to move them to, in place of a new time.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Change the due time, or the queue, of delayed jobs, snoozed jobs and retries."""
    from penstock.ledger.transitions import reschedule as move
    from penstock.ledger.transitions.selected import Move, Reschedule

    if [at, after, to_queue].count(None) != 2:
        raise typer.BadParameter("give one of --at, --in and --to-queue")
    discover(imports or ())
    if to_queue is not None:
        _check_queue(to_queue)
        filter = _by_ids(ids) if ids else _given(chosen())
        _act_on_all(filter, Move(to_queue), actor, dry_run, yes or bool(ids), f"moved to {to_queue}")
        return
    due_at = at or datetime.now(UTC) + (after or timedelta())
    done = f"due at {due_at.isoformat()}"
    if ids:
        _refuse_filters(chosen())
        _for_each(ids, partial(move.reschedule, due_at=due_at, actor=actor), f"is {done}", dry_run)
        return
    filter = _given(chosen())
    if filter.key is None or filter.given.keys() - {"key", "kind", "tenant"} or dry_run:
        _act_on_all(filter, Reschedule(due_at), actor, dry_run, yes, done)
        return
    with open_ledger() as database:
        moved = move.reschedule_key(database, filter.key, due_at, actor=actor, kind=filter.kind, tenant=filter.tenant)
    for job_id in moved:
        echo(job_id)
    echo(f"{done}: {len(moved):,}", err=True)


def _by_ids(ids: list[str]) -> JobFilter:
    from penstock.ledger.queries.jobs import JobFilter, full_id

    with open_ledger() as database:
        return JobFilter(ids=tuple(full_id(database, id) for id in ids))  # others cannot be moved


def _for_each(ids: list[str], act: Any, done: str, dry_run: bool) -> None:
    """Act on each of these, by the beginning of its id. The act says what one means that is not on record."""
    from penstock.ledger.queries.jobs import full_id

    whole = partial(full_id, strict=False)
    if dry_run:
        for_each(ids, whole)
    else:
        for_each(ids, lambda database, id: act(database, whole(database, id)), done)


def _given(filter: JobFilter | None) -> JobFilter:
    if filter is None:
        raise typer.BadParameter("give the ids of jobs, or filters such as --key or --state")
    return filter


def _refuse_filters(filter: JobFilter | None, *allowed: str) -> None:
    if filter is not None and filter.given.keys() - set(allowed):
        raise typer.BadParameter("give the ids of jobs, or filters, not both")


def _check_queue(name: str) -> None:
    from penstock.schemas.jobs.kind import registry

    if name not in (queues := registry.queues() | set(open_settings().queues)):
        raise typer.BadParameter(
            f"unknown queue {name!r}; known are {', '.join(sorted(queues))}", param_hint="--to-queue"
        )


def _act_on_all(filter: JobFilter, act: Act, actor: str, dry_run: bool, yes: bool, done: str) -> None:
    from penstock.ledger.transitions.selected import COUNTED, act_on_all

    with open_ledger() as database:
        run = partial(act_on_all, database, filter, act, actor=actor)
        if dry_run or not yes:
            matching = run(dry_run=True).done
            number = f"more than {COUNTED:,}" if matching > COUNTED else f"{matching:,}"
            if dry_run:
                echo(f"would be {done}: {number}", err=True)
                return
            _ask(f"{number} jobs will be {done}; go on?")
        shows_progress = sys.stderr.isatty()

        def show(progress: Progress) -> None:
            if shows_progress:
                typer.echo(f"\r{progress.done:,} …", err=True, nl=False)

        result = run(on_progress=show)
    if shows_progress:
        typer.echo("\r", err=True, nl=False)
    refused = f"; not changed: {result.refused:,}" if result.refused else ""
    echo(f"{done}: {result.done:,}{refused}", err=True)


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Give --yes, or look first with --dry-run")
    typer.confirm(question, abort=True, err=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (retry, cancel, reschedule):
        app.command()(command)
