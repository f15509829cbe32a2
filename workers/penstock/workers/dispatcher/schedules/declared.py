"""The schedules of penstock.toml and of the code that is imported here, checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from penstock.config.errors import ConfigError
from penstock.config.sections.schedules import read_entry
from penstock.config.settings import Settings
from penstock.config.toml import TomlFile
from penstock.ledger.schedules.rules import Schedule as Schedule
from penstock.ledger.schedules.rules import check
from penstock.schemas.schedules.decorator import Declared, declared


def read_schedules(settings: Settings) -> list[Schedule]:
    """Every schedule, by name. A wrong one carries its error; the others are not touched by it.

    Of the file and the code, the file has the last word about a name.
    """
    found = {name: _declared(one) for name, one in declared.items()}
    for name, entry in settings.schedules.items():
        found[name] = check(name, entry, partial(_where, settings, name))
    return [found[name] for name in sorted(found)]


def _declared(one: Declared) -> Schedule:
    def where(_keys: Sequence[str]) -> str:
        return f"{one.where}: schedule {one.name!r}"

    return check(one.name, read_entry(one.values), where, source="code", module=one.module)


def _where(settings: Settings, name: str, keys: Sequence[str]) -> str:
    """Where it stands. The file is read again, and only for a wrong one: settings keep no lines."""
    try:
        file = TomlFile.read(settings.file) if settings.file else TomlFile.empty()
        return f"{file.where(['schedules', name, *keys])}: schedule {name!r}"
    except (ConfigError, OSError):
        return f"schedule {name!r}"
