"""Verbs: what the holder of a key or token may do."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from penstock.config.suggestions import one_of


class Verb(StrEnum):
    """Permission of a key, a JWT or a token. All but `read` and `send` are for acts, which the audit log has."""

    READ = "read"
    SEND = "send"
    CANCEL = "cancel"
    RETRY = "retry"
    SCHEDULE = "schedule"
    ADMIN = "admin"


def verbs_of(names: Iterable[object], among: Iterable[Verb] = Verb) -> tuple[Verb, ...]:
    """Names as verbs, each once, in the order of `Verb`.

    Arguments:
        among: the verbs that are allowed here.

    Raises:
        ValueError: a name is not one of these; names it, and all of them.
    """
    allowed, named = tuple(among), set()
    for name in names:
        one_of("verb", name if isinstance(name, str) else None, allowed)
        named.add(name)
    return tuple(verb for verb in allowed if verb in named)
