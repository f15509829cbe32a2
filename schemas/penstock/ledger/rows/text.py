"""Text of strangers, made fit for every database."""

from __future__ import annotations


def storable(text: object, longest: int) -> str | None:
    """At most `longest` characters of a text, without NUL and lone surrogates; None if it is not text."""
    if not isinstance(text, str):
        return None
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:longest]
