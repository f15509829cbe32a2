"""Options of `enqueue`, spelled out once: producers, outboxes and the gateway take these and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypedDict

from penstock.schemas.jobs.durations import Duration
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.jobs.unique_policy import UniquePolicy


class EnqueueOptions(TypedDict, total=False):
    """Keywords of `Producer.enqueue`; None counts as not given.

    Keywords:
        delay: run it no sooner than this from now, as a timedelta or in seconds.
        run_at: or no sooner than then; an aware datetime.
        priority: `high`, `normal` or `low`; as its kind says if not given.
        key: the thing that the job is about, to find it by; at most 255 characters.
        tenant: the customer on whose behalf it runs.
        expires_in: discard it if it has not run by then, as a timedelta or in seconds.
        queue: another queue than its kind's.
        id: its id; a new one if not given. Giving one makes a repeated call harmless.
        traceparent: the W3C trace it belongs to; that of the current span or request if not given.
        unique: the policy where another job of its kind and tenant holds its key, in place of its kind's: `reject`,
            `existing`, `replace` or `debounce`.
        unique_for: how long it holds its key, as a timedelta or in seconds.
        unique_states: the states in which it holds its key, in place of all that are not final.
        debounce: the quiet period of that policy, as a timedelta or in seconds.
    """

    delay: Duration | None
    run_at: datetime | None
    priority: Priority | None
    key: str | None
    tenant: str | None
    expires_in: Duration | None
    queue: str | None
    id: str | None
    traceparent: str | None
    unique: UniquePolicy | None
    unique_for: Duration | None
    unique_states: Sequence[str] | None
    debounce: Duration | None


OPTION_NAMES = frozenset(EnqueueOptions.__annotations__)
POLICY_OPTIONS = frozenset({"unique", "unique_for", "unique_states", "debounce"})
TIME_OPTIONS = frozenset({"delay", "run_at", "expires_in"})


def check_names(options: Mapping[str, object]) -> None:
    """Check that every option exists.

    Raises:
        TypeError: one does not; names it as Python does.
    """
    if not OPTION_NAMES.issuperset(options):
        unknown = next(name for name in options if name not in OPTION_NAMES)
        raise TypeError(f"enqueue() got an unexpected keyword argument {unknown!r}")
