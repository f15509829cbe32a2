"""Command lines of `penstock` in `infra/` exist, with their options."""

from __future__ import annotations

import re

import pytest
from repository.infra.commands import parsed
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


@pytest.mark.parametrize("place", COMMANDS)
def test_the_command_exists_with_these_options(place: str) -> None:
    parsed(COMMANDS[place])


def test_flower_is_given_the_password_that_compose_asks_for() -> None:
    from penstock.workers.engines.celery.flower.server import BASIC_AUTH

    assert ours()["flower"]["environment"][BASIC_AUTH] == SAMPLE
