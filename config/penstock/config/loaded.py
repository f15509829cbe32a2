"""Modules that are loaded late: when they are needed, or only where the process has imported them by itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any


def loaded(name: str) -> ModuleType | None:
    """The module if the process has imported it, else None. It is never imported for the asking.

    One that another thread is importing at the moment is waited for: it is in `sys.modules`, and lacks half its names.
    """
    return importlib.import_module(name) if name in sys.modules else None


def load_on_use(
    package: str, homes: Mapping[str, str], modules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are loaded when they are first used.

    Arguments:
        homes: name → the module that defines it; a leading dot is the package.
        modules: names that are the module itself.
    """

    def load(name: str) -> Any:
        if (home := homes.get(name)) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: Any = importlib.import_module(home, package)
        if name not in modules:
            value = getattr(value, name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, list_names
