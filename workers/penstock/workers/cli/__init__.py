"""`penstock`: the command line.

A command imports its libraries when it runs: `penstock jobs list` must not wait for engines it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError as missing:
    # A backend that only enqueues installs none of these libraries, but still gets the console script.
    raise SystemExit(f"penstock: {missing}; the command line needs pip install 'penstock[workers]'") from None

from typer.main import get_group

from penstock.config import supervision
from penstock.workers.cli.common.adopted import add_options
from penstock.workers.cli.common.errors import Commands

HOMES = {
    **dict.fromkeys(("up", "demo", "worker", "dispatcher", "flower", "probe"), "run"),
    "enqueue": "enqueue",
    "doctor": "doctor",
    "adopt": "adopt",
    **dict.fromkeys(("pause", "resume"), "fleet.pauses"),
    "stats": "fleet.stats",
    "settings": "fleet.settings",
    "jobs": "jobs.commands",
    "deadletters": "jobs.deadletters",
    "audit": "jobs.audit",
    "schedules": "schedules.commands",
    "workflows": "workflows",
    "queues": "fleet.queues",
    "limits": "fleet.limits",
    "kinds": "fleet.kinds",
    "workers": "fleet.workers",
    "alerts": "fleet.alerts",
    "emails": "fleet.builtin.emails",
    "schema": "schema",
    "gateway": "gateway",
    "console": "fleet.console",
    "syncs": "fleet.builtin.syncs",
    "db": "db",
}
"""Command → the module below this package that defines it: with `add_to` a command, or with `app` a group of them."""


class Root(Commands):
    """Loads a command when it is used: one does not wait for the modules of the others."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: dict[str, Any] = dict.fromkeys(HOMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if self.commands.get(cmd_name) is None and (home := HOMES.get(cmd_name)) is not None:
            module = import_module(f"{__name__}.{home}")
            part = typer.Typer(pretty_exceptions_enable=False)
            if hasattr(module, "add_to"):
                module.add_to(part)
            else:
                part.add_typer(module.app, name=cmd_name)
            group = get_group(part)
            add_options(group)
            self.commands |= group.commands
        return super().get_command(ctx, cmd_name)


def _print_version(requested: bool) -> None:
    if requested:
        from penstock.schemas import __version__

        typer.echo(f"penstock {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Root,
    help="Penstock: background jobs on Celery and Dramatiq, over Redis and RabbitMQ.",
    no_args_is_help=True,
    # Pretty tracebacks show local variables, and with them sensitive values.
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Penstock: background jobs on Celery and Dramatiq, over Redis and RabbitMQ."""


def main() -> None:
    """The console script."""
    with supervision.ends_in_time():
        app(prog_name="penstock")
