"""Names of a module that is being written: its imports, and distinct names for classes and functions."""

from __future__ import annotations

import builtins
import keyword
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from penstock.workers.engines.typed.layout import WIDTH, Group, Node, lay_out

_OURS = "penstock"
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_INSTALLED = ("site-packages", "dist-packages")


class Names:
    """Every name that a module uses.

    Arguments:
        reserved: names that no import may take.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._used = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *reserved}
        self._imports: dict[str, dict[str, str]] = defaultdict(dict)

    def imported(self, module: str, attribute: str, alias: str | None = None) -> str:
        """Import an attribute of a module. Returns its name here: its own, unless that is taken."""
        names = self._imports[module]
        if attribute not in names:
            names[attribute] = self.take(alias or attribute)
        return names[attribute]

    def take(self, name: str, otherwise: str = "_") -> str:
        """Take a name that is free: this one, else with a suffix, else with a number."""
        candidates = [name, f"{name}{otherwise}"]
        number = 2
        while (candidate := candidates.pop(0)) in self._used:
            candidates.append(f"{name}_{number}")
            number += 1
        self._used.add(candidate)
        return candidate

    @contextmanager
    def undone_on_errors(self) -> Iterator[None]:
        """Forget the names of the block if it raises: an import that nothing uses is an error of style."""
        used, imports = set(self._used), {module: dict(names) for module, names in self._imports.items()}
        try:
            yield
        except BaseException:
            self._used, self._imports = used, defaultdict(dict, imports)
            raise

    def import_lines(self) -> Iterator[str]:
        """The imports, sorted as ruff sorts them."""
        sections: dict[int, list[str]] = defaultdict(list)
        for module in self._imports:
            sections[_section(module)].append(module)
        for position, section in enumerate(sorted(sections)):
            if position:
                yield ""
            for module in sorted(sections[section], key=str.lower):
                names = self._imports[module]
                plain = sorted((name for name, own in names.items() if name == own), key=_order)
                statements = [
                    (_order(name), _import(module, [f"{name} as {own}"])) for name, own in names.items() if name != own
                ]
                if plain:
                    statements.append((_order(plain[0]), _import(module, plain)))
                for _, statement in sorted(statements, key=lambda statement: statement[0]):
                    yield from lay_out(statement)


def _import(module: str, items: Sequence[str]) -> Node:
    line = f"from {module} import {', '.join(items)}"
    return line if len(line) <= WIDTH else Group(f"from {module} import (", items, ")")


def _order(name: str) -> tuple[int, str]:
    """Constants first, then classes, then the rest."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2), name.lower()


def _section(module: str) -> int:
    """The standard library's, then those of installed packages, then the application's."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return 0
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return 1 if top == _OURS or any(folder in file for folder in _INSTALLED) else 2


def class_and_function_names(tasks: Sequence[str], names: Names) -> dict[str, tuple[str, str]]:
    """Task → the names of its job class and of its handler: of the last part of its name, or of more where several
    tasks end in the same."""
    depths = dict.fromkeys(tasks, 1)
    while True:
        by_class = defaultdict(list)
        for task in tasks:
            by_class[_class_name(task, depths[task])].append(task)
        short = [
            task
            for group in by_class.values()
            if len(group) > 1
            for task in group
            if depths[task] < len(_segments(task))
        ]
        if not short:
            break
        for task in short:
            depths[task] += 1
    return {
        task: (
            names.take(_class_name(task, depths[task]), "Job"),
            names.take(_function_name(task, depths[task])),
        )
        for task in tasks
    }


def _segments(task: str) -> list[str]:
    return re.split(r"[.:]", task)


def _words(task: str, depth: int) -> list[str]:
    return _WORD.findall("_".join(_segments(task)[-depth:])) or ["task"]


def _class_name(task: str, depth: int) -> str:
    name = "".join(word[0].upper() + word[1:] for word in _words(task, depth))
    return name if name.isidentifier() else f"Task{name}"


def _function_name(task: str, depth: int) -> str:
    name = "_".join(_CAMEL.sub("_", word).lower() for word in _words(task, depth))
    return name if name.isidentifier() else f"task_{name}"
