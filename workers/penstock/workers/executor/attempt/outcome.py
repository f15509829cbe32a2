"""Outcomes: a returned value, an error or a stop becomes the `AttemptOutcome` to record."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from reprlib import Repr
from typing import Any

from pydantic import TypeAdapter

from penstock.config.supervision import faults
from penstock.ledger.sql.text import LONGEST_ERROR, LONGEST_TRACEBACK, storable
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.scrubbing import Scrub
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.payloads import result_json
from penstock.workers.executor.attempt.attempt import Attempt, ClaimedJob
from penstock.workers.executor.attempt.errors import ChildFailed
from penstock.workers.handlers.registry import Handler
from penstock.workers.handlers.retry_after import requested_wait
from penstock.workers.handlers.returns import (
    Discard,
    InDoubt,
    Park,
    Permanent,
    Resend,
    Retry,
    Snooze,
    error_line,
    underlying_error,
    underlying_errors,
    why_final,
)

log = logging.getLogger("penstock.executor")
job_log = logging.getLogger("penstock.jobs")

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 200
"""Makes a `repr` of a bounded length, also of values whose own fails."""
_POSTPONED = timedelta(seconds=2)


def quarantined(claim: Claim) -> AttemptOutcome:
    """The outcome of a job that is not run: it crashed its workers too often."""
    error = _crash_report(claim.crashes, claim.crash)
    return AttemptOutcome(claim, Outcome.DEAD, State.DEAD, datetime.now(UTC), error=error, reason="crashed")


def crashed(attempt: Attempt, crash: str, max_crashes: int) -> AttemptOutcome:
    """The outcome of an attempt whose own process died: the job runs again a little later, or is a dead letter."""
    crashes = attempt.claim.crashes + 1
    if crashes >= max_crashes or attempt.handler.kind.delivery == "at_most_once":
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error=_crash_report(crashes, crash))
        outcome.reason = "crashed"
    else:
        outcome = _outcome(attempt, Outcome.CRASHED, State.SCHEDULED, error=crash, delay=_POSTPONED)
    outcome.crashed = True
    return outcome


def _crash_report(crashes: int, last: str | None) -> str:
    return storable(f"its worker crashed {crashes} times while it ran" + (f", the last time: {last}" if last else ""))


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
        case Park():
            return _outcome(attempt, Outcome.SNOOZED, State.SCHEDULED, error=value.reason)
        case Discard():
            return _outcome(attempt, Outcome.DISCARDED, State.DISCARDED, error=value.reason or None)
        case Retry():
            return failed(attempt, None, reason=value.reason, after=value.after)
        case Resend():
            return _resent(attempt, value)
        case None:
            return _succeeded(attempt, None)
        case JsonResult():
            return _succeeded(attempt, value.text)
        case _:
            try:
                return _succeeded(attempt, result_as_json(attempt.handler, value))
            except TypeError as error:
                return failed(attempt, error)


def _resent(attempt: Attempt, value: Resend) -> AttemptOutcome:
    name, state = (Outcome.RETRY, State.RETRYING) if value.failed else (Outcome.SNOOZED, State.SCHEDULED)
    outcome = _outcome(attempt, name, state, error=value.reason or None, delay=value.after)
    outcome.traceback, outcome.resent = value.traceback, value.envelope
    outcome.outgoing = attempt.context.outgoing
    return outcome


@dataclass(frozen=True, slots=True)
class JsonResult:
    """A result that is JSON already."""

    text: str


def adopted_result(value: Any, limit: int, elsewhere: str) -> JsonResult | None:
    """The result of an adopted task, as the ledger keeps it: what JSON cannot hold, or is too large, as its `repr`.

    Arguments:
        limit: the most bytes of JSON.
        elsewhere: where all of it is, as part of a sentence.
    """
    if value is None:
        return None
    try:
        text = result_json(_ANY, value)
        if len(text.encode()) <= limit:
            return JsonResult(text)
        note = f"over max_result_bytes_inline ({limit}); {elsewhere}"
    except Exception:  # whatever pydantic or a value raises
        note = f"JSON cannot hold {type(value).__name__}; {elsewhere}"
    return JsonResult(json.dumps({"repr": _SHORT.repr(value), "note": note}))


def result_as_json(handler: Handler, value: Any) -> str:
    """A handler's result, as the ledger keeps it. Raises TypeError where JSON cannot hold it."""
    if isinstance(value, JsonResult):
        return value.text
    try:
        return result_json(handler.result, value)
    except Exception as error:
        raise TypeError(f"its result {type(value).__name__} is not a JSON value: {error}") from error


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
    """The outcome of an attempt that was asked to stop."""
    if attempt.stop == "cancelled":
        return _outcome(attempt, Outcome.CANCELLED, State.CANCELLED)
    if attempt.handler.kind.delivery == "at_most_once":
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error="the worker stopped while it ran")
        outcome.reason, outcome.detail = "interrupted", "the worker stopped while it ran, and it must not run twice"
        return outcome
    return interrupted(attempt, "the worker stopped")


def outcome_of(attempt: Attempt, task: asyncio.Task[AttemptOutcome]) -> AttemptOutcome:
    """The outcome of an attempt whose task is done, however it came to that."""
    if task.cancelled():  # before it began, or by its own handler as the last thing that it did
        return failed(attempt, asyncio.CancelledError()) if attempt.stop is None else stopped(attempt)
    if (error := task.exception()) is not None:
        return internal_error(attempt, error)
    return task.result()


def interrupted(attempt: ClaimedJob, error: str | None = None) -> AttemptOutcome:
    """The outcome of an attempt that was cut short through no fault of the job, which runs again."""
    return _outcome(attempt, Outcome.INTERRUPTED, State.QUEUED, error=error)


def unstarted(job: ClaimedJob) -> AttemptOutcome:
    """The outcome of a job that was claimed ahead, and goes to another worker. It does not count as an attempt."""
    outcome = interrupted(job)
    outcome.begun = False
    return outcome


def postponed(attempt: Attempt, error: str) -> AttemptOutcome:
    """The outcome of an attempt whose session failed with the ledger, or that found no process to run in. It runs again
    a little later: delivered at once, again and again, a broker would give it up."""
    return _outcome(attempt, Outcome.SNOOZED, State.SCHEDULED, error=error, delay=_POSTPONED)


def failed(
    attempt: ClaimedJob, error: BaseException | None, *, reason: str = "", after: timedelta | None = None
) -> AttemptOutcome:
    """The outcome of a failed attempt: a retry, or a dead letter where no retry is left.

    Arguments:
        error: raised by the handler; None: it returned `Retry`, with `reason` and `after`.
    """
    claim, now = attempt.claim, datetime.now(UTC)
    failures = claim.failures + 1
    scrub = scrub_of(claim)
    text = scrub(reason if error is None else one_line(error))
    error_type, wait = (None, after) if error is None else retry_decision(error, attempt.handler.kind.retry, now)
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
        why = None if error is None else why_final(error)
        outcome.reason, outcome.detail = "failed", f"{text} ({why or exhausted})"
    else:
        delay = after if after is not None else policy.wait(failures, age=age, asked=wait)
        outcome = _outcome(attempt, Outcome.RETRY, State.RETRYING, error=text, delay=delay)
    if isinstance(error, ChildFailed):
        outcome.traceback = None if error.remote_traceback is None else scrub(error.remote_traceback)
    elif error is not None:
        outcome.traceback, outcome.exception = traceback_of(error, scrub), error
    return outcome


def traceback_of(error: BaseException, scrub: Scrub = str) -> str:
    """The end of an error's traceback, as the ledger keeps it."""
    try:
        lines = "".join(traceback.format_exception(error))
    except Exception as failure:  # of an exception's own attributes
        lines = f"{type(error).__name__}: its traceback cannot be formatted: {type(failure).__name__}"
    return storable(scrub(lines), LONGEST_TRACEBACK, end=True)


def internal_error(attempt: ClaimedJob, error: BaseException) -> AttemptOutcome:
    """The outcome of an attempt that an error of Penstock's own ended: a failed attempt, under the retry policy."""
    faults["internal error"] += 1
    scrub = scrub_of(attempt.claim)
    if attempt.claim.message.kind.shapes:
        job_log.critical("job %s met an internal error\n%s", attempt.claim.message.id, traceback_of(error, scrub))
    else:
        job_log.critical("job %s met an internal error", attempt.claim.message.id, exc_info=error)
    try:
        outcome = failed(attempt, error)
    except Exception:
        outcome = AttemptOutcome(attempt.claim, Outcome.DEAD, State.DEAD, datetime.now(UTC), reason="failed")
    outcome.error = storable(scrub(f"internal_error: {one_line(error)}"))
    if outcome.reason == "failed":
        outcome.reason, outcome.detail = "internal_error", outcome.error
    return outcome


def scrub_of(claim: Claim) -> Scrub:
    """Replaces the values of the job's sensitive fields in a text. Use it before the text is cut."""
    return claim.message.kind.scrub_of_job(claim.message.job)


def one_line(error: BaseException) -> str:
    """The type and text of an error, as the ledger keeps them."""
    if isinstance(error, ChildFailed):
        return str(error)
    return error_line(error)


def retry_decision(
    error: BaseException, policy: RetryPolicy, now: datetime
) -> tuple[type[BaseException], timedelta | None]:
    """The type of error that decides about the retry, and the longest wait that one of a group asks for."""
    if isinstance(error, ChildFailed):
        return error.raised or ChildFailed, error.wait
    waits = [wait for cause in underlying_errors(error, policy) if (wait := requested_wait(cause, now)) is not None]
    return type(underlying_error(error, policy)), max(waits, default=None)


def _dead_letter_reason(error_type: type[BaseException] | None) -> str | None:
    """The reason of the dead letter that such an error makes at once; None: it may be retried."""
    if error_type is None:
        return None
    if issubclass(error_type, Permanent):
        return "permanent"
    return "in_doubt" if issubclass(error_type, InDoubt) else None


def _outcome(
    attempt: ClaimedJob, outcome: Outcome, state: State, *, error: str | None = None, delay: timedelta | None = None
) -> AttemptOutcome:
    if error is not None:
        error = scrub_of(attempt.claim)(error)
    text, now = storable(error, LONGEST_ERROR), datetime.now(UTC)
    due_at = None if delay is None else now + delay
    return AttemptOutcome(attempt.claim, outcome, state, now, error=text, due_at=due_at, delay=delay)
