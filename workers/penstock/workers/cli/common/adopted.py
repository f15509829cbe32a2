"""Options of commands that show the jobs of adopted applications: they register the kinds, as `--import` does."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.main import get_command

from penstock.workers.cli.common.options import Actors, CeleryApp

Rq = Annotated[str | None, typer.Option(metavar="QUEUES", help="RQ's queues that are adopted, as high,default.")]


def add_options(command: Any) -> None:
    """Give the options to a command that has `--import`, and to all commands below it.

    The worker and the dispatcher, which run what is adopted, have them already.
    """
    for part in getattr(command, "commands", {}).values():
        add_options(part)
    own = {parameter.name for parameter in command.params}
    if "imports" not in own or "celery" in own or command.name == "up":  # workers of `up` run none of them
        return
    part = typer.Typer(add_completion=False)
    part.command()(_declare)
    declaring, run = get_command(part), command.callback
    names = {parameter.name for parameter in declaring.params}

    def declare_and_run(**values: Any) -> Any:
        declaring.callback(**{name: values.pop(name) for name in names})  # type: ignore[misc]
        return run(**values)

    command.params += declaring.params
    command.callback = declare_and_run


def _declare(celery: CeleryApp = None, dramatiq: Actors = None, rq: Rq = None) -> None:
    """Register the kinds of adopted applications.

    Raises:
        ImportFailed: one cannot be imported. ConfigError: it is not an application; KindError: a task cannot be a kind.
    """
    if celery is None and not dramatiq and rq is None:
        return
    from penstock.workers.handlers.discovery import discover

    discover()  # first: an application may need what a Django project sets up
    if dramatiq:
        from penstock.workers.engines.dramatiq import adopted as actors

        actors.declare(*dramatiq)
    if rq is not None:
        from penstock.workers.engines import rq as queues

        queues.declare(*queues.split(rq))
    if celery is not None:
        from penstock.workers.engines.celery import adopted as tasks

        tasks.declare(celery)
