"""`penstock`: the command line.

A command imports its libraries when it runs: `penstock jobs list` must not wait for engines it does not use.
"""

from __future__ import annotations

from typing import Annotated

try:
    import typer
except ModuleNotFoundError as missing:
    # A backend that only enqueues installs none of these libraries, but still gets the console script.
    raise SystemExit(f"penstock: {missing}; the command line needs pip install 'penstock[workers]'") from None

from penstock.workers.cli import db, doctor, enqueue, gateway, queues, run, schema, workflows
from penstock.workers.cli.common.errors import Commands
from penstock.workers.cli.jobs import audit, commands, deadletters
from penstock.workers.cli.schedules import commands as schedules


def _print_version(requested: bool) -> None:
    if requested:
        from penstock.schemas import __version__

        typer.echo(f"penstock {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    help="Penstock: background jobs on Celery and Dramatiq, over Redis and RabbitMQ.",
    no_args_is_help=True,
    # Pretty tracebacks show local variables, and with them sensitive values.
    pretty_exceptions_enable=False,
)
for register in (run, enqueue, doctor, queues):
    register.add_to(app)
app.add_typer(commands.app, name="jobs", help="See, explain, retry, cancel and erase jobs.")
app.add_typer(
    deadletters.app,
    name="deadletters",
    help="See, replay and discard dead letters: jobs that are not retried by themselves.",
)
app.add_typer(
    audit.app, name="audit", help="See the decisions of operators: who did what to jobs, dead letters, schedules, keys."
)
app.add_typer(schedules.app, name="schedules", help="See, preview, make, pause, run and backfill schedules.")
app.add_typer(workflows.app, name="workflows", help="See, start, signal, retry and cancel workflows.")
app.add_typer(queues.app, name="queues", help="See how many jobs wait.")
app.add_typer(schema.app, name="schema", help="Export, compare and describe all kinds.")
app.add_typer(gateway.app, name="gateway")
app.add_typer(db.app, name="db", help="Set up and upgrade the ledger's tables.")


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Penstock: background jobs on Celery and Dramatiq, over Redis and RabbitMQ."""


def main() -> None:
    """The console script."""
    app(prog_name="penstock")
