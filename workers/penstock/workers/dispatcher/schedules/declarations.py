"""The schedules of penstock.toml and of the code that is imported here, checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from penstock.config.errors import ConfigError
from penstock.config.sections.schedules import read_entry
from penstock.config.settings import Settings
from penstock.config.toml import TomlFile
from penstock.ledger.schedules.rules import Schedule, check_schedule
from penstock.schemas.schedules.decorator import ScheduleDeclaration, declarations


def read_schedules(settings: Settings) -> list[Schedule]:
    """Every schedule, by name. A wrong one carries its error, and does not affect the others.

    Where the file and the code have the same name, the file wins.
    """
    schedules = {name: _of_code(declaration) for name, declaration in dict(declarations).items()}
    for name, entry in settings.schedules.items():
        schedules[name] = check_schedule(name, entry, partial(_where, settings, name))
    return [schedules[name] for name in sorted(schedules)]


def _of_code(declaration: ScheduleDeclaration) -> Schedule:
    def where(_keys: Sequence[str]) -> str:
        return f"{declaration.where}: schedule {declaration.name!r}"

    entry = read_entry(declaration.values)
    return check_schedule(declaration.name, entry, where, source="code", module=declaration.module)


def _where(settings: Settings, name: str, keys: Sequence[str]) -> str:
    """File, line and name of a schedule. The file is read again, but only for a wrong schedule: settings keep no
    lines."""
    try:
        file = TomlFile.read(settings.file) if settings.file else TomlFile.empty()
        return f"{file.where(['schedules', name, *keys])}: schedule {name!r}"
    except (ConfigError, OSError):
        return f"schedule {name!r}"
