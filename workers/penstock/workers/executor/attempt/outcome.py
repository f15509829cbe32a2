"""Outcomes: a returned value, an error or a stop becomes the `AttemptOutcome` to record."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome, State
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.errors import ChildFailed
from penstock.workers.handlers.retry_after import requested_wait
from penstock.workers.handlers.returns import Discard, InDoubt, Permanent, Retry, Snooze, underlying_error

_MAX_TRACEBACK = 16_000


def quarantined(claim: Claim) -> AttemptOutcome:
    """The outcome of a job that is not run: it crashed its workers too often."""
    last = f", the last time: {claim.crash}" if claim.crash else ""
    error = _db_safe(f"its worker crashed {claim.crashes} times while it ran{last}")
    return AttemptOutcome(claim, Outcome.DEAD, State.DEAD, datetime.now(UTC), error=error, reason="crashed")


def expired(claim: Claim) -> AttemptOutcome:
    """The outcome of a job that is not run: it waited past its expiry."""
    late = datetime.now(UTC) - (claim.message.expires_at or datetime.now(UTC))
    error = f"expired {late - timedelta(microseconds=late.microseconds)} before it could run"
    return AttemptOutcome(claim, Outcome.DISCARDED, State.DISCARDED, datetime.now(UTC), error=error)


def returned(attempt: Attempt, value: Any) -> AttemptOutcome:
    """The outcome of a handler that returned."""
    match value:
        case Snooze():
            return _outcome(attempt, Outcome.SNOOZED, State.SCHEDULED, delay=value.delay, error=value.reason)
        case Discard():
            return _outcome(attempt, Outcome.DISCARDED, State.DISCARDED, error=value.reason or None)
        case Retry():
            return failed(attempt, None, reason=value.reason, after=value.after)
        case None:
            return _succeeded(attempt, None)
        case _:
            try:
                result = attempt.handler.result.dump_json(value, by_alias=True, warnings=False).decode()
            except Exception as error:
                return failed(attempt, TypeError(f"its result {type(value).__name__} is not a JSON value: {error}"))
            return _succeeded(attempt, result)


def _succeeded(attempt: Attempt, result: str | None) -> AttemptOutcome:
    outcome = _outcome(attempt, Outcome.SUCCEEDED, State.SUCCEEDED)
    outcome.result = result
    outcome.outgoing = attempt.context.outgoing
    if attempt.canvas is not None:
        outcome.outgoing = [*outcome.outgoing, *attempt.canvas.after_success(attempt.claim.message, result)]
    if attempt.webhooks is not None:
        outcome.outgoing = [*outcome.outgoing, *attempt.webhooks.after(outcome)]
    return outcome


def stopped(attempt: Attempt) -> AttemptOutcome:
    """The outcome of an attempt that was told to stop."""
    if attempt.stop == "cancelled":
        return _outcome(attempt, Outcome.CANCELLED, State.CANCELLED)
    if attempt.handler.kind.delivery == "at_most_once":
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error="the worker stopped while it ran")
        outcome.reason, outcome.detail = "interrupted", "the worker stopped while it ran, and it must not run twice"
        return outcome
    return interrupted(attempt, "the worker stopped")


def interrupted(attempt: Attempt, error: str | None = None) -> AttemptOutcome:
    """The outcome of an attempt that was cut short through no fault of the job, which runs again."""
    return _outcome(attempt, Outcome.INTERRUPTED, State.QUEUED, error=error)


def failed(
    attempt: Attempt, error: BaseException | None, *, reason: str = "", after: timedelta | None = None
) -> AttemptOutcome:
    """The outcome of a failed attempt: a retry, or a dead letter where no retry is left.

    Arguments:
        error: raised by the handler; None: it returned `Retry`, with `reason` and `after`.
    """
    claim, now = attempt.claim, datetime.now(UTC)
    failures = claim.failures + 1
    text = reason if error is None else one_line(error)
    error_type, wait = (None, after) if error is None else _retry_decision(error, now)
    policy = attempt.handler.kind.retry.for_error(error_type)
    age = now - (claim.message.sent_at or claim.started_at)
    exhausted = policy.exhausted_reason(error_type, failures, age, wait)
    if error is not None and attempt.handler.kind.delivery == "at_most_once":
        exhausted = "at_most_once is never repeated"
    if final := _dead_letter_reason(error_type):
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error=text)
        outcome.reason, outcome.detail = final, text
    elif exhausted is not None:
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error=text)
        outcome.reason, outcome.detail = "failed", f"{text} ({exhausted})"
    else:
        delay = after if after is not None else policy.wait(failures, age=age, asked=wait)
        outcome = _outcome(attempt, Outcome.RETRY, State.RETRYING, error=text, delay=delay)
    if isinstance(error, ChildFailed):
        outcome.traceback = error.remote_traceback
    elif error is not None:
        outcome.traceback = _db_safe("".join(traceback.format_exception(error))[-_MAX_TRACEBACK:], _MAX_TRACEBACK)
    return outcome


def one_line(error: BaseException) -> str:
    """The type and text of an error, as the ledger keeps them."""
    if isinstance(error, ChildFailed):
        return str(error)
    name = type(error).__name__
    try:
        text = str(error).strip()
    except Exception:  # an exception's own __str__ may fail
        return name
    return f"{name}: {text}" if text else name


def _retry_decision(error: BaseException, now: datetime) -> tuple[type[BaseException] | None, timedelta | None]:
    """The type of error that decides about the retry, and the wait that it asks for."""
    if isinstance(error, ChildFailed):
        return error.raised or ChildFailed, error.wait
    error = underlying_error(error)
    return type(error), requested_wait(error, now)


def _dead_letter_reason(error_type: type[BaseException] | None) -> str | None:
    """The reason of the dead letter that such an error makes at once; None: it may be retried."""
    if error_type is None:
        return None
    if issubclass(error_type, Permanent):
        return "permanent"
    return "in_doubt" if issubclass(error_type, InDoubt) else None


def _outcome(
    attempt: Attempt, outcome: Outcome, state: State, *, error: str | None = None, delay: timedelta | None = None
) -> AttemptOutcome:
    text, now = None if error is None else _db_safe(error), datetime.now(UTC)
    due_at = None if delay is None else now + delay
    return AttemptOutcome(attempt.claim, outcome, state, now, error=text, due_at=due_at, delay=delay)


def _db_safe(text: str, longest: int = 2000) -> str:
    """Fit for a text column of every database: no NUL, no lone surrogate, not too long."""
    return text[:longest].replace("\0", "").encode(errors="replace").decode()
