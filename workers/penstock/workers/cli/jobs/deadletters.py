"""`penstock deadletters`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports, Limit, past, rate
from penstock.workers.cli.common.output import print_fields, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.ledger.queries.dead_letters import Selection
    from penstock.ledger.transitions.replay import ReplayResult

app = typer.Typer(no_args_is_help=True)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="Dead letters.")]
_REASON = "Only those dead for this reason, such as failed or unknown_kind."
Reason = Annotated[str | None, typer.Option("--reason", "--dead-reason", metavar="NAME", help=_REASON)]
KindName = Annotated[str | None, typer.Option("--kind", help="Only those of this kind.")]
Queue = Annotated[str | None, typer.Option(help="Only those of this queue.")]
GroupName = Annotated[
    str | None, typer.Option("--group", metavar="FINGERPRINT", help="Only those of this group; see groups.")
]
Key = Annotated[str | None, typer.Option(help="Only those of jobs with this key.")]
Tenant = Annotated[str | None, typer.Option(help="Only those of this tenant.")]
Since = Annotated[datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help="Dead since: 1h, 2d, or a time.")]
Until = Annotated[
    datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help="Dead before: 1h, 2d, or a time.")
]
ErrorText = Annotated[str | None, typer.Option("--error", metavar="TEXT", help="Only those whose error contains this.")]
Everything = Annotated[
    bool, typer.Option("--all", help="All that wait for a decision; not together with other filters.")
]
AtMost = Annotated[int | None, typer.Option("--limit", min=1, help="How many at most, the oldest first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would happen to each, and change nothing.")]


@app.command("list")
def list_dead_letters(
    reason: Reason = None,
    kind: KindName = None,
    queue: Queue = None,
    group: GroupName = None,
    key: Key = None,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    error: ErrorText = None,
    replayed: Annotated[bool, typer.Option("--replayed", help="Show those that were replayed instead.")] = False,
    discarded: Annotated[bool, typer.Option("--discarded", help="Show those that were discarded instead.")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the dead letters that wait for a decision, newest first."""
    from penstock.ledger.queries import dead_letters

    if replayed and discarded:
        raise typer.BadParameter("give --replayed or --discarded, not both")
    decided: Literal["replayed", "discarded"] | None = "replayed" if replayed else "discarded" if discarded else None
    selection = dead_letters.Selection(None, decided, reason, kind, queue, group, key, tenant, since, until, error)
    with open_ledger() as database:
        rows = dead_letters.find(database, selection, limit=limit)
    columns = ("id", "kind", "queue", "reason", "created_at", "fingerprint", "detail")
    print_rows([row._asdict() for row in rows], columns, as_json=as_json, empty="no dead letters")


@app.command("groups")
def list_groups(
    reason: Reason = None,
    kind: KindName = None,
    queue: Queue = None,
    key: Key = None,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    error: ErrorText = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Count the dead letters that wait for a decision, grouped by cause, the most frequent first."""
    from penstock.ledger.queries import dead_letters

    selection = dead_letters.Selection(None, None, reason, kind, queue, None, key, tenant, since, until, error)
    with open_ledger() as database:
        failure_groups = dead_letters.groups(database, selection, limit=limit)
    columns = ("fingerprint", "count", "kind", "reason", "error", "first_at", "last_at", "newest_id")
    print_rows([asdict(group) for group in failure_groups], columns, as_json=as_json, empty="no dead letters")


@app.command()
def show(
    dead_letter_id: Annotated[str, typer.Argument(metavar="ID")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the message's bytes as received; nothing is hidden.")
    ] = False,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter, its attempts, and the decisions about it.

    The fields' values are hidden if no imported module defines the kind.
    """
    from penstock.ledger.queries import dead_letters

    if not raw:
        discover(imports or ())
    with open_ledger() as database:
        details = dead_letters.show(database, dead_letter_id)
    dead_letter, job = details.row, details.job
    if raw:
        sys.stdout.buffer.write(dead_letter.raw or b"")
        return
    fields: dict[str, Any] = dead_letter._asdict()
    fields["headers"] = details.headers
    fields["raw"] = None if dead_letter.raw is None else f"{len(dead_letter.raw)} bytes; see --raw"
    fields["payload"] = details.payload or None
    if job is not None:
        fields |= {name: getattr(job, name) for name in ("state", "key", "tenant", "version", "enqueued_at")}
    attempts = [attempt._asdict() for attempt in details.attempts]
    decisions = [asdict(decision) for decision in details.decisions]
    if as_json:
        print_json(fields | {"attempts": attempts, "decisions": decisions})
        return
    print_fields(fields)
    for attempt in attempts:
        typer.echo()
        left_out = ("job_id", "number")
        print_fields({"attempt": attempt["number"]} | {k: v for k, v in attempt.items() if k not in left_out})
    for one in decisions:
        typer.echo()
        print_fields({"decision": one["act"], "at": one["at"], "actor": one["actor"], "detail": one["detail"]})


@app.command()
def replay(
    ids: Ids = None,
    everything: Everything = False,
    reason: Reason = None,
    kind: KindName = None,
    queue: Queue = None,
    group: GroupName = None,
    key: Key = None,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    error: ErrorText = None,
    edit: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='Fields to set, as {"field": value}; - reads them from stdin. Needs one ID or one --group.',
        ),
    ] = None,
    throttle: Annotated[
        float | None,
        typer.Option(parser=rate, metavar="N/s", help="How many become due per unit of time: 50/s, 600/m or 1000/h."),
    ] = None,
    limit: AtMost = None,
    dry_run: DryRun = False,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
    as_json: AsJson = False,
) -> None:
    """Run the jobs of dead letters again, now. Their counts of failures and crashes start at zero."""
    from penstock.ledger.queries import dead_letters
    from penstock.ledger.transitions.replay import replay as replay_dead_letters

    selection = dead_letters.Selection(
        tuple(ids) if ids else None, None, reason, kind, queue, group, key, tenant, since, until, error
    )
    _check_chosen(selection, everything)
    fields = _fields(edit)
    discover(imports or ())
    with open_ledger() as database:
        results = replay_dead_letters(
            database, selection, actor=actor, edit=fields, per_second=throttle, dry_run=dry_run, limit=limit
        )
    _print_results(results, "replayed", named=bool(ids), dry_run=dry_run, as_json=as_json)


@app.command()
def discard(
    why: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log.")],
    ids: Ids = None,
    everything: Everything = False,
    # Here --reason is the reason of the decision, as people will type it.
    reason: Annotated[str | None, typer.Option("--dead-reason", metavar="NAME", help=_REASON)] = None,
    kind: KindName = None,
    queue: Queue = None,
    group: GroupName = None,
    key: Key = None,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    error: ErrorText = None,
    limit: AtMost = None,
    dry_run: DryRun = False,
    actor: Actor = None,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Close dead letters without running them. They stay on record, and their jobs stay dead."""
    from penstock.ledger.queries import dead_letters
    from penstock.ledger.transitions.replay import discard as discard_dead_letters

    if not why.strip():
        raise typer.BadParameter("give a reason", param_hint="--reason")
    selection = dead_letters.Selection(
        tuple(ids) if ids else None, None, reason, kind, queue, group, key, tenant, since, until, error
    )
    _check_chosen(selection, everything)
    with open_ledger() as database:
        results = discard_dead_letters(database, selection, actor=actor, reason=why, dry_run=dry_run, limit=limit)
    _print_results(results, "discarded", named=bool(ids), dry_run=dry_run, as_json=as_json)


def _check_chosen(selection: Selection, everything: bool) -> None:
    named, filtered = selection.ids is not None, bool(selection.filters)
    if not (named or filtered or everything) or (named and (filtered or everything)):
        raise typer.BadParameter("give the ids of dead letters, a filter such as --group, or --all")


def _fields(edit: str | None) -> dict[str, Any] | None:
    if edit is None:
        return None
    try:
        fields = json.loads(sys.stdin.read() if edit == "-" else edit)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--edit") from None
    if not isinstance(fields, dict) or not fields:
        raise typer.BadParameter('write the fields to set as {"field": value}', param_hint="--edit")
    return fields


def _print_results(results: list[ReplayResult], what: str, *, named: bool, dry_run: bool, as_json: bool) -> None:
    """Print the result of each dead letter that was named or refused; in a dry run, of all.

    Raises:
        Exit: (1) when something could not be done.
    """
    done = sum(result.problem is None for result in results)
    rows = [
        {**asdict(result), "problem": None if result.problem is None else str(result.problem)} for result in results
    ]
    if as_json:
        print_json({"dry_run": dry_run, what: done, "refused": len(rows) - done, "letters": rows})
    elif not rows:
        typer.echo("no dead letters", err=True)
    else:
        if dry_run:
            print_rows(rows, ("id", "kind", "queue", "due_at", "problem"), as_json=False, empty="")
        else:
            for row in rows:
                if row["problem"] is not None:
                    typer.echo(f"penstock: {row['problem']}", err=True)
                elif named:
                    typer.echo(f"{row['id']} {what}")
        typer.echo(f"{'would be ' if dry_run else ''}{what}: {done:,} of {len(rows):,}", err=True)
    if done < len(rows):
        raise typer.Exit(FAILED)
