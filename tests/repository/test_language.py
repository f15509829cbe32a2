"""Docstrings, comments and names say the thing: rules of English that a reader of this field expects."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FOLDERS = ("config", "schemas", "producers", "workers", "tests", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

NOT_FIRST = {"what", "who", "whose", "one", "of", "those", "it", "they", "such", "as"}
"""Words that begin no docstring: they stand for a thing that is not named yet."""

TOO_GENERAL = {"mine", "found", "given", "asked", "taken", "made", "known", "said", "told", "wanted", "shown", "one"}
"""Names that fit any value, and so tell a reader nothing."""

PROMISED = {"schemas/penstock/schemas/jobs/retry_policy.py": "asked"}
"""File → parameter that callers name already."""

UNNAMED_WORK = {"write", "read", "work", "act"}
"""Names of an inner function that do not say what its transaction does."""

NOT_THE_COMMON_WORD = re.compile(
    r"\b(?:is no|are no|anew|begun|beside|whoever|nobody|somebody|stands|is told|are told|lets go|let go|give back|"
    r"gives back|given back|take in|takes in)\b(?! longer)(?! more)",
    re.IGNORECASE,
)
"""In comments and docstrings. Write: is not a, again, started, next to, the caller, no one, someone, is, is notified,
releases, applies."""


class Source(NamedTuple):
    """Words of a file, each with its line."""

    docstrings: list[tuple[int, str]]
    names: list[tuple[int, str]]
    """Variables, loop variables and parameters."""
    inner_functions: list[tuple[int, str]]


@cache
def source(path: Path) -> Source:
    """Parsed once for all tests of a process: there are over a thousand files."""
    words = Source([], [], [])

    def walk(parent: ast.AST, inside: bool) -> None:
        for node in ast.iter_child_nodes(parent):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function or isinstance(node, ast.ClassDef):
                collect_docstring(node)
            if function and inside and not isinstance(parent, ast.ClassDef):
                words.inner_functions.append((node.lineno, node.name))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                words.names.append((node.lineno, node.id))
            elif isinstance(node, ast.arg):
                words.names.append((node.lineno, node.arg))
            walk(node, inside or function)

    def collect_docstring(node: Any) -> None:
        if text := ast.get_docstring(node):
            words.docstrings.append((node.body[0].lineno, text))

    module = ast.parse(path.read_text())
    collect_docstring(module)
    walk(module, inside=False)
    return words


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_a_docstring_begins_with_the_thing() -> None:
    wrong = [
        f"{where(path, line)}: {text.splitlines()[0]}"
        for path in SOURCES
        for line, text in source(path).docstrings
        if re.split(r"\W", text.lower(), maxsplit=1)[0] in NOT_FIRST
    ]
    assert not wrong, "\n".join(wrong)


def test_a_name_says_which_thing_it_is() -> None:
    wrong = [
        f"{where(path, line)}: {name}"
        for path in SOURCES
        for line, name in source(path).names
        if name in TOO_GENERAL and PROMISED.get(str(path.relative_to(ROOT))) != name
    ]
    assert not wrong, "\n".join(wrong)


def test_an_inner_function_says_what_it_does() -> None:
    wrong = sorted(
        {
            f"{where(path, line)}: {name}"
            for path in SOURCES
            for line, name in source(path).inner_functions
            if name in UNNAMED_WORK
        }
    )
    assert not wrong, "\n".join(wrong)


def test_comments_and_docstrings_use_the_common_word() -> None:
    wrong = [
        f"{where(path, line)}: {match.group()!r}: {text.strip().splitlines()[0]}"
        for path in SOURCES
        if path != Path(__file__) and NOT_THE_COMMON_WORD.search(path.read_text())  # which spares most files
        for line, text in (*source(path).docstrings, *comments(path))
        for match in NOT_THE_COMMON_WORD.finditer(text)
    ]
    assert not wrong, "\n".join(wrong)
