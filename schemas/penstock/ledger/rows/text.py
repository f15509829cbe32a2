"""Text of strangers, made fit for every database."""

from __future__ import annotations

from typing import overload


@overload
def storable(text: str, longest: int | None = None) -> str: ...
@overload
def storable(text: object, longest: int | None = None) -> str | None: ...
def storable(text: object, longest: int | None = None) -> str | None:
    """At most `longest` characters of a text, without NUL and lone surrogates; None if it is not text."""
    if not isinstance(text, str):
        return None
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:longest]
