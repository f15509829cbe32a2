"""Texts on the wire, checked: ids, and others that the ledger must have room for."""

from __future__ import annotations

from typing import TypeGuard

from penstock.schemas.jobs.kind import NAME

_MAX_ID = 128
# What the ledger has room for. One longer would spoil the INSERT of a whole batch.
LONGEST = {"queue": 127, "key": 255, "tenant": 255, "traceparent": 64}


def check_text(name: str, value: str) -> None:
    """Check that a text of our header fits into the ledger.

    Raises:
        ValueError: it does not; the message begins with `name`.
    """
    if len(value) > LONGEST[name]:
        raise ValueError(f"{name} has {len(value)} characters; it may have {LONGEST[name]}")
    if name == "queue" and NAME.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not a valid name of a queue")
    if not is_storable(value):
        raise ValueError(f"{name} has a NUL or half a surrogate pair, which a database refuses")


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value off the wire can be a job's id."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_ID and is_storable(value)


def is_storable(text: str) -> bool:
    """Whether every database takes it: PostgreSQL refuses NUL, and a lone surrogate has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
