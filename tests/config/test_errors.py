"""The tree of errors, as the docstring draws it and as it is."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from penstock.config import errors

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("config", "schemas", "producers", "workers")
LINE = re.compile(r"    ((?:│   |    )*)[├└]── (\w+)(?: +([\w.]+))?$")


def drawn() -> dict[str, dict[str, tuple[str, str]]]:
    """Root of each tree → its errors, each with its parent and the module that is named next to it."""
    trees: dict[str, dict[str, tuple[str, str]]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if root := re.fullmatch(r"    (\w+)", line):
            path = [root[1]]
            trees[root[1]] = {}
        elif match := LINE.match(line):
            depth = len(match[1]) // 4 + 1
            path = [*path[:depth], match[2]]
            trees[path[0]][match[2]] = (path[depth - 1], match[3] or errors.__name__)
    return trees


def declared() -> dict[str, tuple[str, str]]:
    """Every class of the product → its first base and its module."""
    classes: dict[str, tuple[str, str]] = {}
    for room in ROOMS:
        source_root = ROOT / room
        for file in source_root.glob("penstock/**/*.py"):
            module = ".".join(file.relative_to(source_root).with_suffix("").parts)
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef) and node.bases and isinstance(node.bases[0], ast.Name):
                    classes[node.name] = (node.bases[0].id, module)
    return classes


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    classes = declared()

    def root_of(name: str) -> str:
        while name in classes and name != "PenstockError":
            name = classes[name][0]
        return name

    real = {name: entry for name, entry in classes.items() if root_of(name) == "PenstockError" != name}
    assert drawn()["PenstockError"] == real


def test_the_drawn_errors_of_handlers_are_those_of_their_module() -> None:
    module = "penstock.workers.handlers.returns"
    real = {name for name, (base, place) in declared().items() if place == module and base == "Exception"}
    assert drawn()["Exception"].keys() == real


@pytest.mark.parametrize("package", ["penstock.producers", "penstock.workers"])
def test_a_package_exports_only_errors_that_are_drawn(package: str) -> None:
    module = importlib.import_module(package)
    names = {name for tree in drawn().values() for name in tree} | {"PenstockError"}
    exported = {
        value.__name__
        for value in (getattr(module, name) for name in module.__all__)
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert exported <= names


def test_handlers_find_their_errors_in_the_package_of_workers() -> None:
    from penstock.workers import LedgerUnavailable, NotDone, ObjectNotFound, Permanent, StorageError

    assert LedgerUnavailable is errors.LedgerUnavailable
    assert issubclass(ObjectNotFound, StorageError)
    assert not any(issubclass(error, errors.PenstockError) for error in (NotDone, Permanent))
