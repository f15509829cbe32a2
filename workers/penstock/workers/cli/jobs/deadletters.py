"""`penstock deadletters`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.filters import gathered
from penstock.workers.cli.common.options import AsJson, Imports, Limit, parse_json, past, rate
from penstock.workers.cli.common.output import echo, print_fields, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.ledger.queries.dead_letters import Selection
    from penstock.ledger.transitions.replay import ReplayResult

app = typer.Typer(
    no_args_is_help=True, help="See, replay and discard dead letters: jobs that are not retried by themselves."
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="Dead letters.")]
Everything = Annotated[
    bool, typer.Option("--all", help="All that wait for a decision; not together with other filters.")
]
AtMost = Annotated[int | None, typer.Option("--limit", min=1, help="How many at most, the oldest first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would happen to each, and change nothing.")]

_REASON = "Only those dead for this reason, such as failed or unknown_kind."
_FILTERS: dict[str, Any] = {
    "reason": Annotated[str | None, typer.Option("--reason", "--dead-reason", metavar="NAME", help=_REASON)],
    "kind": Annotated[str | None, typer.Option(help="Only those of this kind.")],
    "queue": Annotated[str | None, typer.Option(help="Only those of this queue.")],
    "group": Annotated[str | None, typer.Option(metavar="FINGERPRINT", help="Only those of this group; see groups.")],
    "key": Annotated[str | None, typer.Option(help="Only those of jobs with this key.")],
    "tenant": Annotated[str | None, typer.Option(help="Only those of this tenant.")],
    "since": Annotated[
        datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help="Dead since: 1h, 2d, or a time.")
    ],
    "until": Annotated[
        datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help="Dead before: 1h, 2d, or a time.")
    ],
    "error": Annotated[str | None, typer.Option(metavar="TEXT", help="Only those whose error contains this.")],
}
"""Field of a `Selection` → its option."""


def _with_filters(**changed: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put the filter options where a command has its parameter `selection`, which it gets made of them.

    Arguments:
        changed: options in place of those of `_FILTERS`; None leaves one out.
    """

    def make(values: dict[str, Any]) -> Selection:
        from penstock.ledger.queries.dead_letters import Selection

        return Selection(**values)

    return gathered("selection", _FILTERS | changed, make)


@app.command("list")
@_with_filters()
def list_dead_letters(
    *,
    selection: Selection,
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
    with open_ledger() as database:
        rows = dead_letters.find(database, replace(selection, decided=decided), limit=limit)
    columns = ("id", "kind", "queue", "reason", "created_at", "fingerprint", "detail")
    print_rows([row._asdict() for row in rows], columns, as_json=as_json, empty="no dead letters")


@app.command("groups")
@_with_filters(group=None)
def list_groups(*, selection: Selection, limit: Limit = 50, as_json: AsJson = False) -> None:
    """Count the dead letters that wait for a decision, grouped by cause, the most frequent first."""
    from penstock.ledger.queries import dead_letters

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
    from penstock.ledger.queries.jobs import full_id

    if not raw:
        discover(imports or ())
    with open_ledger() as database:
        details = dead_letters.show(database, full_id(database, dead_letter_id))
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
        echo()
        left_out = ("job_id", "number")
        print_fields({"attempt": attempt["number"]} | {k: v for k, v in attempt.items() if k not in left_out})
    for decision in decisions:
        echo()
        values = {"decision": decision["act"], "at": decision["at"]}
        print_fields(values | {"actor": decision["actor"], "detail": decision["detail"]})


@app.command("replay")
@_with_filters()
def replay_dead_letters(
    ids: Ids = None,
    everything: Everything = False,
    *,
    selection: Selection,
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
    from penstock.ledger.transitions.replay import replay

    selection = _choose(selection, ids, everything)
    fields = _fields(edit)
    discover(imports or ())
    with open_ledger() as database:
        results = replay(
            database, selection, actor=actor, edit=fields, per_second=throttle, dry_run=dry_run, limit=limit
        )
    _print_results(results, "replayed", named=bool(ids), dry_run=dry_run, as_json=as_json)


# Here --reason is the reason of the decision, as people will type it.
@app.command("discard")
@_with_filters(reason=Annotated[str | None, typer.Option("--dead-reason", metavar="NAME", help=_REASON)])
def discard_dead_letters(
    why: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log.")],
    ids: Ids = None,
    everything: Everything = False,
    *,
    selection: Selection,
    limit: AtMost = None,
    dry_run: DryRun = False,
    actor: Actor = None,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Close dead letters without running them. They stay on record, and their jobs stay dead."""
    from penstock.ledger.transitions.replay import discard

    if not why.strip():
        raise typer.BadParameter("give a reason", param_hint="--reason")
    selection = _choose(selection, ids, everything)
    with open_ledger() as database:
        results = discard(database, selection, actor=actor, reason=why, dry_run=dry_run, limit=limit)
    _print_results(results, "discarded", named=bool(ids), dry_run=dry_run, as_json=as_json)


def _choose(selection: Selection, ids: list[str] | None, everything: bool) -> Selection:
    filtered = bool(selection.filters)
    if not (ids or filtered or everything) or (ids and (filtered or everything)):
        raise typer.BadParameter("give the ids of dead letters, a filter such as --group, or --all")
    return replace(selection, ids=tuple(ids) if ids else None)


def _fields(edit: str | None) -> dict[str, Any] | None:
    if edit is None:
        return None
    fields = parse_json(edit, "--edit", or_stdin=True)
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
        echo("no dead letters", err=True)
    else:
        if dry_run:
            print_rows(rows, ("id", "kind", "queue", "due_at", "problem"), as_json=False, empty="")
        else:
            for row in rows:
                if row["problem"] is not None:
                    echo(f"penstock: {row['problem']}", err=True)
                elif named:
                    echo(f"{row['id']} {what}")
        echo(f"{'would be ' if dry_run else ''}{what}: {done:,} of {len(rows):,}", err=True)
    if done < len(rows):
        raise typer.Exit(FAILED)
