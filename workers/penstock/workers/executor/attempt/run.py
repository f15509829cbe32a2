"""One attempt: call the handler where it wants to run, and turn the result into an `AttemptOutcome`."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome, FenceLost
from penstock.schemas.states import Outcome, State
from penstock.workers.executor.attempt.child_process import ChildFailed, run_in_child
from penstock.workers.executor.attempt.large_results import LargeResults
from penstock.workers.executor.attempt.session import Sessions
from penstock.workers.executor.followups.celery_canvas import Canvas
from penstock.workers.executor.followups.webhooks import Hooks
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import Handler
from penstock.workers.handlers.resources import Resources
from penstock.workers.handlers.retry_after import asked_wait
from penstock.workers.handlers.returns import (
    Discard,
    InDoubt,
    JobCancelled,
    Permanent,
    Retry,
    Snooze,
    TimedOut,
    blamed,
)

Stop = Literal["cancelled", "interrupted"]

STOPPING_SECONDS = 5.0
"""How long a thread or child that was told to stop may take before the attempt ends without it."""
_MAX_TRACEBACK = 16_000


@dataclass(slots=True)
class Attempt:
    """A claimed job on its way through a handler.

    Attributes:
        stop: set before `task` is cancelled: why.
        canvas: reads what a stock client wants to follow; None where that is nothing.
        hooks: tell others of its end; None: nobody is to be told.
    """

    claim: Claim
    handler: Handler
    context: Context
    task: asyncio.Task[None] | None = None
    stop: Stop | None = None
    canvas: Canvas | None = None
    hooks: Hooks | None = None


async def run_attempt(
    attempt: Attempt,
    resources: Resources,
    threads: ThreadPool,
    sessions: Sessions,
    results: LargeResults,
    retired: Callable[[], bool],
) -> AttemptOutcome:
    """Run one attempt to its end. Never raises, whatever the handler does.

    Arguments:
        sessions: where `ctx.session` came from.
        results: where those go that are too large for the ledger.
        retired: whether the worker is stopping, so that a thread's JobCancelled means interruption.
    """
    handler, context = attempt.handler, attempt.context
    try:
        arguments: dict[str, Any] = {}
        if handler.context is not None:
            arguments[handler.context] = context
        if handler.mode != "child":
            for name, wanted in handler.resources.items():
                arguments[name] = await resources.get(wanted)
        outcome = _returned(attempt, await _call(attempt, arguments, threads))
        if results.holds(outcome):
            await results.store(outcome)
        if context.opened_session is not None and outcome.name == Outcome.SUCCEEDED:
            await _commit(attempt, outcome, threads, sessions)
        return outcome
    except asyncio.CancelledError:
        return stopped(attempt)
    except JobCancelled as error:
        if attempt.stop is None and not retired():
            return _failed(attempt, error)
        return stopped(attempt)
    except FenceLost:
        outcome = _outcome(attempt, Outcome.INTERRUPTED, State.QUEUED)
        outcome.recorded = False
        return outcome
    except Exception as error:
        if sessions.lost(error) and handler.kind.delivery != "at_most_once":
            return _outcome(attempt, Outcome.INTERRUPTED, State.QUEUED, error=_line(error))
        return _failed(attempt, error)
    except BaseException as error:  # SystemExit of a handler must end the job, not the worker
        return _failed(attempt, RuntimeError(f"the handler raised {error!r}"))
    finally:
        if context.opened_session is not None:
            await _close(attempt, threads)


async def _commit(attempt: Attempt, outcome: AttemptOutcome, threads: ThreadPool, sessions: Sessions) -> None:
    """Commit the handler's transaction with its outcome in it."""
    session = attempt.context.opened_session
    try:
        if attempt.handler.mode == "async":
            await sessions.commit_async(session, outcome)
        else:
            await asyncio.get_running_loop().run_in_executor(threads, sessions.commit, session, outcome)
        outcome.recorded = True
    except FenceLost:
        outcome.recorded = False


async def _close(attempt: Attempt, threads: ThreadPool) -> None:
    """Roll back what was not committed; a connection that is gone has done so itself."""
    session = attempt.context.opened_session
    with contextlib.suppress(Exception):
        if attempt.handler.mode == "async":
            await session.close()
        else:
            await asyncio.get_running_loop().run_in_executor(threads, session.close)


def quarantined(claimed: Claim) -> AttemptOutcome:
    """The end of a job that is not run: it crashed its workers too often."""
    last = f", the last time: {claimed.crash}" if claimed.crash else ""
    error = _clean(f"its worker crashed {claimed.crashes} times while it ran{last}")
    return AttemptOutcome(claimed, Outcome.DEAD, State.DEAD, datetime.now(UTC), error=error, reason="crashed")


def expired(claimed: Claim) -> AttemptOutcome:
    """The end of a job that is not run: it waited past its expiry."""
    late = datetime.now(UTC) - (claimed.message.expires_at or datetime.now(UTC))
    error = f"expired {late - timedelta(microseconds=late.microseconds)} before it could run"
    return AttemptOutcome(claimed, Outcome.DISCARDED, State.DISCARDED, datetime.now(UTC), error=error)


async def _call(attempt: Attempt, arguments: dict[str, Any], threads: ThreadPool) -> Any:
    handler, timeout = attempt.handler, attempt.handler.kind.timeout
    job = attempt.claim.message.job
    if handler.mode == "async":
        if timeout is None:
            return await handler.function(job, **arguments)
        return await _in_time(handler.function(job, **arguments), timeout)
    if handler.mode == "thread":
        future = asyncio.get_running_loop().run_in_executor(threads, lambda: handler.function(job, **arguments))
        return await _watch(attempt, future, timeout)
    child = asyncio.ensure_future(run_in_child(handler, job, attempt.context, timeout))
    return await _watch(attempt, child, None)


async def _in_time(work: Awaitable[Any], timeout: timedelta) -> Any:
    limit = asyncio.timeout(timeout.total_seconds())
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise TimedOut(f"took longer than its timeout of {timeout.total_seconds():g} s") from error
        raise


async def _watch(attempt: Attempt, future: asyncio.Future[Any], timeout: timedelta | None) -> Any:
    """Wait for work that cannot be interrupted from here, telling it through the context when it should stop."""
    try:
        seconds = None if timeout is None else timeout.total_seconds()
        done, _ = await asyncio.wait({future}, timeout=seconds)
        if done:
            return future.result()
        attempt.context.cancel()
        await asyncio.wait({future}, timeout=STOPPING_SECONDS)
        raise TimedOut(f"took longer than its timeout of {seconds:g} s")
    except asyncio.CancelledError:
        attempt.context.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({future}, timeout=STOPPING_SECONDS)
        if attempt.stop is not None and future.done() and not future.cancelled() and future.exception() is None:
            return future.result()  # it got to its end in time after all
        raise
    finally:
        if not future.done():
            future.add_done_callback(_forget)


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # retrieved, so that asyncio does not report it as lost


def _returned(attempt: Attempt, value: Any) -> AttemptOutcome:
    match value:
        case Snooze():
            return _outcome(attempt, Outcome.SNOOZED, State.SCHEDULED, delay=value.delay, error=value.reason)
        case Discard():
            return _outcome(attempt, Outcome.DISCARDED, State.DISCARDED, error=value.reason or None)
        case Retry():
            return _failed(attempt, None, said=value.reason, after=value.after)
        case None:
            return _succeeded(attempt, None)
        case _:
            try:
                result = attempt.handler.result.dump_json(value, by_alias=True, warnings=False).decode()
            except Exception as error:
                return _failed(attempt, TypeError(f"its result {type(value).__name__} is no JSON value: {error}"))
            return _succeeded(attempt, result)


def _succeeded(attempt: Attempt, result: str | None) -> AttemptOutcome:
    outcome = _outcome(attempt, Outcome.SUCCEEDED, State.SUCCEEDED)
    outcome.result = result
    outcome.outgoing = attempt.context.outgoing
    if attempt.canvas is not None:
        outcome.outgoing = [*outcome.outgoing, *attempt.canvas.after_success(attempt.claim.message, result)]
    if attempt.hooks is not None:
        outcome.outgoing = [*outcome.outgoing, *attempt.hooks.after(outcome)]
    return outcome


def stopped(attempt: Attempt) -> AttemptOutcome:
    """The end of an attempt that was told to stop."""
    if attempt.stop == "cancelled":
        return _outcome(attempt, Outcome.CANCELLED, State.CANCELLED)
    if attempt.handler.kind.delivery == "at_most_once":
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error="the worker stopped while it ran")
        outcome.reason, outcome.detail = "interrupted", "the worker stopped while it ran, and it must not run twice"
        return outcome
    return _outcome(attempt, Outcome.INTERRUPTED, State.QUEUED, error="the worker stopped")


def _failed(
    attempt: Attempt, error: BaseException | None, *, said: str = "", after: timedelta | None = None
) -> AttemptOutcome:
    claim, now = attempt.claim, datetime.now(UTC)
    failures = claim.failures + 1
    text = said if error is None else _line(error)
    kind, asked = (None, after) if error is None else _told(error, now)
    policy = attempt.handler.kind.retry.for_error(kind)
    age = now - (claim.message.sent_at or claim.started_at)
    why = policy.exhausted_reason(kind, failures, age, asked)
    if error is not None and attempt.handler.kind.delivery == "at_most_once":
        why = "at_most_once is never repeated"
    if reason := _final(kind):
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error=text)
        outcome.reason, outcome.detail = reason, text
    elif why is not None:
        outcome = _outcome(attempt, Outcome.DEAD, State.DEAD, error=text)
        outcome.reason, outcome.detail = "failed", f"{text} ({why})"
    else:
        wait = after if after is not None else policy.wait(failures, age=age, asked=asked)
        outcome = _outcome(attempt, Outcome.RETRY, State.RETRYING, error=text, delay=wait)
    if isinstance(error, ChildFailed):
        outcome.traceback = error.remote_traceback
    elif error is not None:
        outcome.traceback = _clean("".join(traceback.format_exception(error))[-_MAX_TRACEBACK:], _MAX_TRACEBACK)
    return outcome


def _final(kind: type[BaseException] | None) -> str | None:
    """The reason of a dead letter that such an error is at once."""
    if kind is None:
        return None
    return "permanent" if issubclass(kind, Permanent) else "in_doubt" if issubclass(kind, InDoubt) else None


def _told(error: BaseException, now: datetime) -> tuple[type[BaseException] | None, timedelta | None]:
    """What decides about the retry: the error's type, and the wait it asks for."""
    if isinstance(error, ChildFailed):
        return error.raised or ChildFailed, error.asked
    error = blamed(error)
    return type(error), asked_wait(error, now)


def _outcome(
    attempt: Attempt, outcome: Outcome, state: State, *, error: str | None = None, delay: timedelta | None = None
) -> AttemptOutcome:
    text, now = None if error is None else _clean(error), datetime.now(UTC)
    due_at = None if delay is None else now + delay
    return AttemptOutcome(attempt.claim, outcome, state, now, error=text, due_at=due_at, delay=delay)


def _line(error: BaseException) -> str:
    if isinstance(error, ChildFailed):
        return str(error)
    name = type(error).__name__
    try:
        text = str(error).strip()
    except Exception:  # an exception's own __str__ may fail
        return name
    return f"{name}: {text}" if text else name


def _clean(text: str, longest: int = 2000) -> str:
    """Fit for a text column of every database: no NUL, no lone surrogate, not too long."""
    return text[:longest].replace("\0", "").encode(errors="replace").decode()
