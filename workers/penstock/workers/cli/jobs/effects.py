"""`penstock jobs effects`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.session import open_ledger


def add_to(app: typer.Typer) -> None:
    app.command("effects")(effects)


def effects(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    confirm: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Confirm that this effect happened; a replay then continues after it."),
    ] = None,
    result: Annotated[
        str | None, typer.Option(metavar="JSON", help="With --confirm: the result that the handler gets.")
    ] = None,
    forget: Annotated[
        str | None, typer.Option(metavar="KEY", help="Declare that it did not happen; a replay then calls it again.")
    ] = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
    as_json: AsJson = False,
) -> None:
    """Show the effects that a job started with ctx.once(key), or decide about one that is in doubt."""
    from penstock.ledger import effects as records
    from penstock.ledger.queries.jobs import full_id

    if (confirm is not None and forget is not None) or (result is not None and confirm is None):
        raise typer.BadParameter("give --confirm KEY with or without --result, or --forget KEY")
    if result is not None:
        try:
            json.loads(result)
        except ValueError as error:
            raise typer.BadParameter(f"--result is not JSON: {error}") from error
    with open_ledger() as database:
        job_id = full_id(database, job_id, strict=False)  # effects outlive a job that is not on record
        if (key := confirm if confirm is not None else forget) is not None:
            records.decide(database, job_id, key, happened=confirm is not None, result=result, actor=actor)
            echo(f"effect {key} of job {job_id} {'happened' if confirm is not None else 'did not happen'}", err=True)
        recorded = records.effects_of(database, job_id)
    rows = [
        {
            "key": row.key,
            "id": row.id,
            "state": "done" if row.done_at is not None else "not confirmed",
            "begun_at": row.begun_at,
            "done_at": row.done_at,
            "result": None if row.result is None else json.loads(row.result),
        }
        for row in recorded
    ]
    print_rows(rows, ("key", "id", "state", "begun_at", "done_at", "result"), as_json=as_json, empty="no effects")
