"""Command lines of `penstock` in `infra/` exist, with their options."""

from __future__ import annotations

import re
from typing import Any

import pytest
from repository.infra.files import DEPLOYING, INFRA, SAMPLE, UNITS, ours, unit_command

COMMANDS = {
    **{f"compose {name}": service["command"] for name, service in ours().items()},
    **{unit.name: unit_command(unit) for unit in UNITS},
    **{
        f"{page.name} {command}": command.split()
        for page in (INFRA / "README.md", DEPLOYING)
        for command in re.findall(r"bin/penstock ([a-z].*)$", page.read_text(), re.MULTILINE)
    },
}


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of a command of `penstock`, parsed and checked; nothing is run."""
    from typer.main import get_command

    from penstock.workers.cli import app

    command, rest = get_command(app), list(arguments)
    while hasattr(command, "get_command") and not rest[0].startswith("-"):
        name = rest.pop(0)
        click_command = command.get_command(command.context_class(command), name)
        assert click_command is not None, f"penstock has no command {name}"
        command = click_command
    options: dict[str, Any] = command.make_context(command.name, rest).params
    return options


@pytest.mark.parametrize("place", COMMANDS)
def test_the_command_exists_with_these_options(place: str) -> None:
    parsed(COMMANDS[place])


def test_flower_is_given_the_password_that_compose_asks_for() -> None:
    from penstock.workers.engines.celery.flower_server import BASIC_AUTH

    assert ours()["flower"]["environment"][BASIC_AUTH] == SAMPLE
