"""`penstock workflows`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import typer

from penstock.schemas.workflows import WorkflowState
from penstock.workers.cli import enqueue
from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, Imports, Limit, parse_json
from penstock.workers.cli.common.output import echo, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger
from penstock.workers.handlers.discovery import discover

app = typer.Typer(no_args_is_help=True, help="See, start, signal, retry and cancel workflows.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The workflow: the id of its job.")]
_LATE = timedelta(seconds=15)


@app.command("list")
def list_workflows(
    state: Annotated[WorkflowState | None, typer.Option(help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only those of this kind.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List workflows, newest first."""
    from penstock.ledger.workflows import commands

    with open_ledger() as database:
        rows = commands.find(database, state=state, kind=kind, limit=limit)
    columns = ("id", "kind", "state", "done", "steps", "started_at", "finished_at", "error")
    print_rows([row._asdict() for row in rows], columns, as_json=as_json, empty="no workflows")


@app.command()
def show(
    workflow_id: Id,
    format: Annotated[
        Literal["tree", "mermaid", "json"], typer.Option(help="tree, mermaid (for Markdown) or json.")
    ] = "tree",
    as_json: AsJson = False,
) -> None:
    """Draw one workflow: its steps, their states, and how long they took."""
    from penstock.ledger.workflows import commands
    from penstock.workers.workflows import render

    with open_ledger() as database:
        details = commands.show(database, workflow_id)
    if as_json or format == "json":
        print_json(details.as_json())
        return
    for line in render.mermaid(details) if format == "mermaid" else render.tree(details):
        echo(line)
    if details.overdue is not None and details.now - details.overdue > _LATE:
        echo(
            f"penstock: no dispatcher has moved it on since {details.overdue:%Y-%m-%d %H:%M:%SZ}; one must be up that "
            f"has imported what defines {details.row.kind}: penstock dispatcher --import …",
            err=True,
        )


# To start a workflow is to enqueue its job, with all options there are for that.
app.command("start", help="Start a workflow: the same as penstock enqueue, with a workflow's kind.")(enqueue.enqueue)


@app.command()
def signal(
    workflow_id: Id,
    step: Annotated[str, typer.Argument(help="A step that waits for an answer, or will.")],
    answer: Annotated[str, typer.Argument(metavar="JSON", help="The answer; - reads it from stdin.")],
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Answer a step that waits for an event or an approval."""
    from penstock.ledger.workflows import commands

    value = parse_json(answer, "JSON", or_stdin=True)
    discover(imports or ())
    with open_ledger() as database:
        commands.signal(database, workflow_id, step, value, actor=actor)
    echo(f"{workflow_id} {step} is answered")


@app.command()
def retry(
    workflow_id: Id,
    from_step: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Run this step and all that follow it again.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Start over, with the current definition.")] = False,
    edit: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="JSON", help='Fields of its input to set, as {"field": value}; - reads them from stdin.'
        ),
    ] = None,
    imports: Imports = None,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Continue a workflow that has ended: failed steps run again, and finished steps stay finished."""
    from penstock.ledger.workflows import commands

    if everything and from_step is not None:
        raise typer.BadParameter("give --from or --all")
    fields = None if edit is None else parse_json(edit, "--input", or_stdin=True)
    if fields is not None and not isinstance(fields, dict):
        raise typer.BadParameter('write the fields to set as {"field": value}', param_hint="--input")
    discover(imports or ())
    with open_ledger() as database:
        names = commands.retry(
            database, workflow_id, actor=actor, from_step=from_step, everything=everything, edit=fields
        )
    echo(f"{workflow_id} goes on: {', '.join(names) or 'nothing was left to do'}")


@app.command()
def cancel(
    workflow_id: Id,
    compensate: Annotated[
        bool, typer.Option("--compensate/--no-compensate", help="Whether to undo the finished steps.")
    ] = True,
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Cancel a workflow: waiting steps at once, running steps through their workers."""
    from penstock.ledger.workflows import commands

    with open_ledger() as database:
        commands.cancel(database, workflow_id, actor=actor, undo=compensate)
    echo(f"{workflow_id} is asked to stop")
