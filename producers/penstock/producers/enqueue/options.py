"""Options of `enqueue`, spelled out once: producers, outboxes and the gateway take these and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from penstock.config.suggestions import did_you_mean, one_of
from penstock.schemas.jobs.durations import Duration, checked_duration, checked_time, positive_duration
from penstock.schemas.jobs.kind import NAME, PRIORITIES, Priority
from penstock.schemas.jobs.unique_policy import UniquePolicy
from penstock.schemas.wire.codec import check_text, is_id
from penstock.schemas.wire.tags import check_tags


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
        tags: words to find it by in lists; at most 10, of at most 64 characters each.
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
    tags: Sequence[str] | None


OPTION_NAMES = frozenset(EnqueueOptions.__annotations__)
POLICY_OPTIONS = frozenset({"unique", "unique_for", "unique_states", "debounce"})


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a job, those of its policy excepted, and return those that are given.

    Returns durations as timedeltas, times in UTC.

    Raises:
        ValueError: one is wrong; names it, and what is right.
        TypeError: one does not exist; names it as Python does, and the nearest that there is.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTION_NAMES:
            hint = did_you_mean(name, OPTION_NAMES)
            raise TypeError(f"enqueue() got an unexpected keyword argument {name!r}{hint}")
        if value is not None:
            checked[name] = _CHECKS[name](name, value)
    return checked


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty; leave it out, or give None")
    check_text(name, value)
    return value


def _id(name: str, value: Any) -> str:
    if not is_id(value) or len(value.encode()) > _MOST_ID_BYTES:
        raise ValueError(f"id must be text of 1 to 128 characters, without NUL, not {value!r}; such as str(uuid4())")
    return value


def _priority(name: str, value: Any) -> Any:
    one_of(name, value, PRIORITIES)
    return value


def _queue(name: str, value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"queue {value!r} must be letters, digits, '_', '.', ':' or '-', at most 127")
    return value


def _tags(name: str, value: Any) -> tuple[str, ...]:
    return check_tags(value)


def _later(name: str, value: Any) -> Any:
    return value


_MOST_ID_BYTES = 255
"""AMQP has room for so many."""

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "delay": checked_duration,
    "run_at": checked_time,
    "priority": _priority,
    "key": _text,
    "tenant": _text,
    "expires_in": positive_duration,
    "queue": _queue,
    "id": _id,
    "traceparent": _text,
    "tags": _tags,
    **dict.fromkeys(POLICY_OPTIONS, _later),  # together, by `Unique.of`
}
