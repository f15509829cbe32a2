"""Commands of `penstock` that files in `infra/` run."""

from __future__ import annotations

from typing import Any


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of a command of `penstock`, parsed and checked; nothing is run."""
    from typer.main import get_command

    from penstock.workers.cli import app

    command, rest = get_command(app), list(arguments)
    while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        click_command = command.get_command(command.context_class(command), name)
        assert click_command is not None, f"penstock has no command {name}"
        command = click_command
    options: dict[str, Any] = command.make_context(command.name, rest).params
    return options
