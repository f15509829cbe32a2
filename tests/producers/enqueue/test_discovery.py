"""Errors that a user may catch can be imported from where they are raised, and the version can be read."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import schemas
from penstock.config import errors

ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}


def raised(package: str) -> dict[str, str]:
    """Error → a public function or class of the package whose docstring says, after `Raises`, that it raises it."""
    module = importlib.import_module(package)
    names: dict[str, str] = {}
    for path in Path(*module.__path__).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                _, _, section = (ast.get_docstring(node) or "").partition("Raises")
                names |= {name: f"{path.name}: {node.name}" for name in re.findall(r"\w+", section) if name in ERRORS}
    return names


@pytest.mark.parametrize("package", ["penstock.producers", "penstock.schemas"])
def test_every_documented_error_is_exported_by_its_package(package: str) -> None:
    exported = set(importlib.import_module(package).__all__) | set(schemas.__all__)
    if package == "penstock.schemas":
        exported |= set(importlib.import_module("penstock.producers").__all__)
    hidden = {name: where for name, where in raised(package).items() if name not in exported}
    assert hidden == {}


def test_the_root_of_the_errors_is_exported() -> None:
    from penstock import producers

    assert all(issubclass(getattr(producers, name), producers.PenstockError) for name in ERRORS & set(vars(producers)))


def test_the_version_is_printed_by_the_command_line() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "penstock", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert out.stdout == f"penstock {schemas.__version__}\n"
