"""Tags: words that a job is given when it is enqueued, to find it by in lists."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from penstock.config.errors import UndecodableMessage

MOST_TAGS, LONGEST_TAG = 10, 64
"""Of a job, and characters of each."""


def read_tags(value: Any) -> tuple[str, ...]:
    """The tags in a header; none for None. Raises UndecodableMessage (`undecodable`): as `check_tags`."""
    try:
        return check_tags(value) if value is not None else ()
    except ValueError as error:
        raise UndecodableMessage("undecodable", f"penstock.{error}") from error


def check_tags(value: Any) -> tuple[str, ...]:
    """Tags of a job, in order, each once.

    Raises:
        ValueError: they are not a sequence of texts, or too many or too long; the message begins with `tags`.
    """
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence | Set)
        or not all(isinstance(tag, str) for tag in value)
    ):
        raise ValueError(f"tags must be a sequence of texts, such as ('import',), not {value!r}")
    tags = tuple(dict.fromkeys(value))
    if len(tags) > MOST_TAGS:
        raise ValueError(f"tags are {len(tags)}; a job may have {MOST_TAGS}")
    for tag in tags:
        if not 0 < len(tag) <= LONGEST_TAG or not tag.isprintable():
            raise ValueError(f"tags are printable texts of 1 to {LONGEST_TAG} characters, not {tag!r}")
    return tags
