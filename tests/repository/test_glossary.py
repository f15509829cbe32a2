"""The glossary and the code use the same words."""

from __future__ import annotations

import re
import tokenize
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from penstock.schemas.jobs.kind import DeliveryPromise, Priority
from penstock.schemas.jobs.unique_policy import UniquePolicy
from penstock.schemas.states import Outcome, State
from penstock.schemas.workflows import StepState, WorkflowState

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|(?: (.+))? \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
MEANING = {word: meaning for word, meaning, _ in ROWS}
REPLACED = {old: word for word, _, replaced in ROWS for old in replaced.split(", ") if old}
"""Word that is not used → the word that is."""

NOT_THE_COMMON_WORD = {
    "beside": "next to",
    "drawing": "render",
    "entrance": "unique_enqueue",
    "forks": "fork_safety",
    "notes": "steps",
    "presence": "heartbeat",
    "somebody": "someone",
    "whoever": "the caller",
}
"""Word in no identifier, though the glossary has no entry for its replacement → what to write instead."""

PROMISED = {"letters"}
"""Identifiers that are part of a public interface: a key of `penstock.toml`."""


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("state", State),
        ("outcome", Outcome),
        ("lane", get_args(Priority)),
        ("delivery promise", get_args(DeliveryPromise)),
        ("key", get_args(UniquePolicy)),
        ("workflow", WorkflowState),
        ("step", StepState),
    ],
)
def test_an_entry_names_all_values_of_its_enumeration_and_no_other(word: str, values: tuple[str, ...]) -> None:
    named = [name for name in re.findall(r"`([a-z_]+)`", MEANING[word]) if name != "unique_by"]
    assert sorted(named) == sorted(str(value) for value in values)


def test_each_word_has_one_entry() -> None:
    words = [word for word, _, _ in ROWS]
    assert sorted(set(words)) == sorted(words)
    assert not set(words) & set(REPLACED)


def words_of(identifier: str) -> list[str]:
    """`DeadLetterRow` and `dead_letter_row` → dead, letter, row."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)]


def uses(identifier: str, word: str) -> bool:
    """Whether the word, or its plural, is in an identifier by itself: `letter` is not in `dead_letter`."""
    words = words_of(identifier)
    *before, last = REPLACED[word].split()
    positions = [at for at, part in enumerate(words) if part in (word, f"{word}s")]
    return any(last != word or words[max(0, at - 1) : at] != before for at in positions)


@cache
def identifiers() -> dict[str, set[str]]:
    """Every identifier of the product → the files that have it."""
    places: dict[str, set[str]] = {}
    for root in ("config", "schemas", "producers", "workers"):
        for path in (ROOT / root / "penstock").rglob("*.py"):
            with path.open() as file:
                for token in tokenize.generate_tokens(file.readline):
                    if token.type == tokenize.NAME:
                        places.setdefault(token.string, set()).add(path.relative_to(ROOT).as_posix())
    return places


def test_no_identifier_has_a_word_that_the_glossary_replaces() -> None:
    hits = [
        f"{name} in {', '.join(sorted(files)[:3])}: say {REPLACED[word]!r}"
        for name, files in sorted(identifiers().items())
        for word in REPLACED
        if name not in PROMISED and uses(name, word)
    ]
    assert hits == []


def test_identifiers_use_the_common_word() -> None:
    hits = [
        f"{name} in {', '.join(sorted(files)[:3])}: say {NOT_THE_COMMON_WORD[word]!r}"
        for name, files in sorted(identifiers().items())
        for word in words_of(name)
        if word in NOT_THE_COMMON_WORD
    ]
    assert hits == []
