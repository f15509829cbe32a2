"""`penstock adopt`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.config.errors import ConfigError
from penstock.config.sections.values import listed
from penstock.workers.cli.common.output import echo

if TYPE_CHECKING:
    from penstock.workers.engines.typed import Module


def add_to(app: typer.Typer) -> None:
    app.command()(adopt)


def adopt(
    celery: Annotated[
        str | None, typer.Option("--app", metavar="MODULE:APP", help="A Celery application, as for celery -A.")
    ] = None,
    dramatiq: Annotated[
        list[str] | None,
        typer.Option("--dramatiq", metavar="MODULE", help="A module of Dramatiq's actors; may be given repeatedly."),
    ] = None,
    queues: Annotated[
        str | None, typer.Option(help="Only the tasks of these queues, as a,b; if not given, all.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file, if it exists.")] = False,
) -> None:
    """Write a module of typed jobs for the tasks of an application, with handlers that call them: a start for moving to
    types."""
    if (celery is None) == (not dramatiq):
        raise typer.BadParameter("give --app, a Celery application, or --dramatiq, a module of actors")
    _check(output, force)
    chosen = listed(queues or "")
    with redirect_stdout(sys.stderr):  # an application may print
        module = _written(celery, dramatiq or [], chosen)
    if output is None:
        typer.echo(module.text, nl=False)
    else:
        try:
            output.write_text(module.text, "utf-8")
        except OSError as error:
            raise ConfigError(f"--output {output}: {error.strerror}") from error
        echo(f"{output}: written", err=True)
    for reason in module.left_out:
        echo(f"penstock: left out: {reason}", err=True)


def _check(output: Path | None, force: bool) -> None:
    """Refuse a file that exists, before the application is imported."""
    if output is not None and output.exists() and not force:
        raise ConfigError(f"--output {output}: it exists; name another file, or give --force to replace it")


def _written(celery: str | None, modules: list[str], queues: list[str]) -> Module:
    if celery is not None:
        from penstock.workers.engines.celery.adopted import typed as of_celery

        return of_celery.write_jobs(celery, queues)
    from penstock.workers.engines.dramatiq.adopted import typed as of_dramatiq

    return of_dramatiq.write_jobs(modules, queues)
