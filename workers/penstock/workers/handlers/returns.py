"""Return values of handlers besides results, and errors. Control flow is returned; only failure is raised."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from penstock.schemas.jobs.durations import checked_duration, checked_time

if TYPE_CHECKING:
    from penstock.schemas.jobs.retry_policy import RetryPolicy
    from penstock.schemas.wire.codec import Envelope

_FINAL = "_penstock_final"
"""The attribute of an error with the reason why it is final."""


def _check_reason(reason: object) -> None:
    if not isinstance(reason, str):
        raise ValueError(f"reason must be text, not {reason!r}")


@dataclass(frozen=True, slots=True, init=False)
class Snooze:
    """Run the job again later; costs no attempt. `Snooze(60)`, `Snooze(timedelta(hours=1))`, `Snooze(until=…)`.

    Raises:
        ValueError: the wait is negative or over a hundred years, the time has no zone, or the reason is not a text.
    """

    delay: timedelta
    reason: str | None

    def __init__(
        self, delay: float | timedelta = 0, *, until: datetime | None = None, reason: str | None = None
    ) -> None:
        if until is not None:
            delay = max(checked_time("until", until) - datetime.now(UTC), timedelta(0))
        if (wait := checked_duration("delay", delay)) is None:
            raise ValueError("give delay or until")
        if reason is not None:
            _check_reason(reason)
        object.__setattr__(self, "delay", wait)
        object.__setattr__(self, "reason", reason)


@dataclass(frozen=True, slots=True)
class Park:
    """Let the job wait in the ledger without a time: something else ends it, as its last step does a workflow."""

    reason: str


@dataclass(frozen=True, slots=True)
class Discard:
    """End the job without success or alarm: there is nothing left to do.

    Raises:
        ValueError: the reason is not a text.
    """

    reason: str = ""

    def __post_init__(self) -> None:
        _check_reason(self.reason)


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """A failed attempt that the handler foresaw, such as a 503 with `Retry-After`. Costs an attempt.

    Attributes:
        after: the wait before the next one; None: as the kind's policy says.
        reason: shown where an error would be.

    Raises:
        ValueError: the wait is negative or over a hundred years, or the reason is not a text.
    """

    after: timedelta | None
    reason: str

    def __init__(
        self, after: float | timedelta | None = None, *, reason: str = "the handler asked for a retry"
    ) -> None:
        _check_reason(reason)
        object.__setattr__(self, "after", checked_duration("after", after))
        object.__setattr__(self, "reason", reason)


@dataclass(frozen=True, slots=True)
class Resend:
    """The job goes on as another message under its id: the handler of an adopted task whose framework sends a message
    again, such as Celery's `self.retry` and `self.replace`.

    Attributes:
        envelope: the message, of the job's id. Its kind and fields may be others.
        after: the wait before it is sent.
        failed: this was a failed attempt, which the framework tries again. False: it costs no attempt.
        reason: shown where an error would be.
        traceback: of the error behind it.
    """

    envelope: Envelope
    after: timedelta = timedelta(0)
    failed: bool = True
    reason: str = ""
    traceback: str | None = None


class Permanent(Exception):
    """Raised by a handler: no retry will fix this failure. The job is a dead letter at once."""


class JobCancelled(Exception):
    """Raised in a thread or child process that asks `ctx.check_cancelled()` after the job was cancelled."""


class SoftTimeLimitExceeded(Exception):
    """Raised in a handler that has run for its kind's `soft_timeout`: it may still end in good order, until `timeout`.

    In a process it is raised where the handler is; in a thread by `ctx.check_cancelled()`; to a coroutine it comes as
    `CancelledError`, and its attempt fails with this error.
    """


class NotDone(Exception):
    """Raised by the effect of a `ctx.once(key)`, best `from` the error it met: it certainly did not happen."""


class InDoubt(Exception):
    """Raised by `ctx.once(key)`: an earlier run of the effect was cut short, and no one can say whether it happened.

    Not caught, it makes the job a dead letter with the reason `in_doubt`.

    Attributes:
        key: the effect's. effect_id: the id that its provider was given.
        begun_at: when the effect was last started.
    """

    def __init__(self, key: str, effect_id: str, begun_at: datetime) -> None:
        super().__init__(
            f"effect {key!r} (id {effect_id}) was begun at {begun_at.isoformat(timespec='seconds')} and not confirmed; "
            "find out whether it happened, then say so with penstock jobs effects, and replay the job"
        )
        self.key, self.effect_id, self.begun_at = key, effect_id, begun_at


def as_final(error: BaseException, why: str) -> BaseException:
    """The error of an adopted task, with the reason why its framework does not try it again, for the dead letter."""
    with contextlib.suppress(Exception):  # of a class whose objects cannot be changed
        setattr(error, _FINAL, why)
    return error


def why_final(error: BaseException) -> str | None:
    """The reason that `as_final` has put into an error."""
    try:
        return vars(error).get(_FINAL)
    except Exception:  # of the class's own attributes
        return None


def underlying_errors(error: BaseException, policy: RetryPolicy | None = None) -> list[BaseException]:
    """The errors that decide about a retry: for a NotDone, the error it was raised from; for a group, those of its
    members, unless the policy names the group's own class."""
    named = () if policy is None else (*policy.give_up_on, *policy.by_error)
    errors: list[BaseException] = []
    waiting, seen = [error], set[int]()
    while waiting:
        error = waiting.pop()
        if id(error) in seen:  # an error may be its own cause
            continue
        seen.add(id(error))
        if isinstance(error, NotDone) and error.__cause__ is not None:
            waiting.append(error.__cause__)
        elif isinstance(error, BaseExceptionGroup) and not any(
            issubclass(base, BaseExceptionGroup) and isinstance(error, base) for base in named
        ):
            waiting.extend(reversed(error.exceptions))
        else:
            errors.append(error)
    return errors or [error]


def underlying_error(error: BaseException, policy: RetryPolicy | None = None) -> BaseException:
    """The one of `underlying_errors` that leaves the fewest retries; the first of several."""

    def finality(error: BaseException) -> tuple[int, int]:
        if isinstance(error, Permanent):
            return 3, 0
        if isinstance(error, InDoubt):
            return 2, 0
        if policy is None:
            return 0, 0
        special = policy.for_error(type(error))
        return int(isinstance(error, special.give_up_on)), -special.max_attempts

    return max(underlying_errors(error, policy), key=finality)


def error_line(error: BaseException) -> str:
    """The type and text of an error. Its type alone where its text cannot be had: a `__str__` may fail in any way."""
    name = type(error).__name__
    try:
        text = str(error).strip()
    except BaseException as failure:
        return f"{name} (its __str__ raised {type(failure).__name__})"
    return f"{name}: {text}" if text else name
