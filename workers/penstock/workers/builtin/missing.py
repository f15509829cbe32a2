"""Sections of penstock.toml that a worker lacks: a job that names one is held back for workers that have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class ForTenants(Protocol):
    def is_for(self, tenant: str | None) -> bool: ...


def lack_of(section: str, name: str, sections: Mapping[str, ForTenants], tenant: str | None) -> str | None:
    """The lack of a worker without the section that a job names, with the names it has for the tenant; None: it has it.

    Arguments:
        section: the word for it, such as `report`.
    """
    if name in sections:
        return None
    names = ", ".join(sorted(other for other, settings in sections.items() if settings.is_for(tenant))) or "none"
    return f"no {section} {name!r} in penstock.toml; there is: {names}"
