"""`penstock audit`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from penstock.workers.cli.common.options import AsJson, Limit, past
from penstock.workers.cli.common.output import print_rows
from penstock.workers.cli.common.session import open_ledger

app = typer.Typer(
    no_args_is_help=True, help="See the decisions of operators: who did what to jobs, dead letters, schedules, keys."
)


@app.command("list")
def list_actions(
    subject: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only decisions about this job, dead letter, schedule, workflow or key."),
    ] = None,
    act: Annotated[
        list[str] | None,
        typer.Option(help="Only these actions, such as replay, edit, discard or revoke; may be given repeatedly."),
    ] = None,
    actor: Annotated[str | None, typer.Option(metavar="NAME", help="Only decisions of this person or program.")] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help="Done since: 1h, 2d, or a time.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help="Done before: 1h, 2d, or a time.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the decisions of operators, newest first: who did what, when, and to how many."""
    from penstock.ledger.rows import audit

    with open_ledger() as database:
        entries = audit.find(
            database, subject=subject, acts=act or (), actor=actor, since=since, until=until, limit=limit
        )
    columns = ("at", "actor", "act", "subject_kind", "subject", "count", "detail")
    print_rows([asdict(entry) for entry in entries], columns, as_json=as_json, empty="nothing was done")
