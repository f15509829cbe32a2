"""Exit codes of commands: a Penstock error is a line on stderr and an exit code, never a traceback."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from penstock.config.errors import ConfigError, InvalidJob, PenstockError
from penstock.workers.cli.common.output import echo

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


class Commands(TyperGroup):
    """A command group with exit codes. 1: failed. 2: wrong usage, configuration or module. 130: Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except PenstockError as error:
            raise typer.Exit(report(error)) from None


def report(error: PenstockError) -> int:
    """Print an error. Returns the exit code."""
    from penstock.workers.handlers.discovery import ImportFailed

    if isinstance(error, ImportFailed):
        echo(error.trace.removesuffix("\n"), err=True, lines=True)
    echo(f"penstock: {error}", err=True, lines=isinstance(error, ConfigError))
    return WRONG_USE if isinstance(error, ConfigError | InvalidJob) else FAILED
