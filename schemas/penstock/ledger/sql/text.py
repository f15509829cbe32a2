"""Text and numbers from outside, made storable in every database."""

from __future__ import annotations

from typing import overload

LONGEST_ERROR = 2000
"""Characters of an error that a row keeps."""
LONGEST_DETAIL = 2 * LONGEST_ERROR
"""Characters of a dead letter's detail."""
LONGEST_TRACEBACK = 16_000
LONGEST_NOTE = 255


@overload
def storable(text: str, longest: int | None = None, *, end: bool = False) -> str: ...
@overload
def storable(text: object, longest: int | None = None, *, end: bool = False) -> str | None: ...
def storable(text: object, longest: int | None = None, *, end: bool = False) -> str | None:
    """At most `longest` characters of a text, without NUL and lone surrogates; None if it is not text.

    A text that is cut says so, and how long it was.

    Arguments:
        end: keep the end of a long text, and not its beginning.
    """
    if not isinstance(text, str):
        return None
    if longest is not None and len(text) > longest:
        mark = f"[cut: {len(text):,} characters]"
        kept = max(longest - len(mark) - 2, 0)
        text = f"{mark} …{text[len(text) - kept :]}" if end else f"{text[:kept]}… {mark}"
        text = text[:longest]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def is_storable(text: str) -> bool:
    """Whether every database takes it: PostgreSQL refuses NUL, and a lone surrogate has no UTF-8."""
    return storable(text) == text


def storable_count(number: object) -> int | None:
    """A whole number that a column of 64 bits holds; None for anything else."""
    return number if isinstance(number, int) and -(2**63) <= number < 2**63 else None
