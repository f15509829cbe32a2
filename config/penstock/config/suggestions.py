"""The nearest right word, for messages about a wrong one."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: object, words: Iterable[str]) -> str:
    """`; did you mean 'queue'?`, or nothing where no known word is near."""
    from difflib import get_close_matches  # only errors need it

    near = get_close_matches(str(word)[:100], list(words), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Check that an option has one of the values it may have.

    Raises:
        ValueError: it has not; names them, and the nearest.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}{did_you_mean(value, choices)}")
