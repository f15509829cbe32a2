"""A run of a task through Celery's own tracer, and what the ledger keeps of it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import celery
from celery import states
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject

from penstock.config.settings import Settings
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.wire.codec import encode
from penstock.workers.engines.celery.adopted.ends import store_failure
from penstock.workers.engines.celery.adopted.request import request_of
from penstock.workers.engines.celery.adopted.sending import Resent, running
from penstock.workers.executor.attempt.outcome import JsonResult, adopted_result, traceback_of
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Discard, Resend, as_final, error_line

log = logging.getLogger("penstock.worker")


class TaskRunner:
    """Runs one task of an application. Thread-safe.

    The tracer, which is made when it first runs, is Celery's: it calls the task, its hooks, callbacks and error
    callbacks, sends the signals, and stores states and results in the application's backend.
    """

    def __init__(self, app: celery.Celery, task: celery.Task, settings: Settings) -> None:
        self._app, self._task, self._settings = app, task, settings
        self._tracer: Any = None

    def run(self, job: AdoptedJob, context: Context) -> Any:
        """Run an attempt. Returns what a handler may return.

        Raises:
            Exception: the task's own, if it failed for good.
        """
        self._app.set_current()  # in this thread, whatever application others have made the default one since
        args, kwargs, request = request_of(self._app, self._task.name, job, context.job_id, context.worker)
        if self._tracer is None:
            self._tracer = build_tracer(self._task.name, self._task, app=self._app, hostname=context.worker)
        resent = Resent(context.job_id)
        token = running.set(resent)
        try:
            retval, info, _, _ = self._tracer(context.job_id, args, kwargs, request)
        except Reject as rejection:  # of a hook that ran after the task
            return self._rejected(rejection, job, context, request)
        finally:
            running.reset(token)
        state = states.SUCCESS if info is None else info.state
        if resent.envelope is not None and state != states.FAILURE:
            failed = state == states.RETRY
            return _resend(resent, info.retval if failed else None, failed=failed)
        match state:
            case states.FAILURE:
                error = info.retval if isinstance(info.retval, BaseException) else RuntimeError(str(info.retval))
                raise as_final(error, self._why_final(error, request.get("retries") or 0))
            case states.REJECTED:
                return self._rejected(info.retval, job, context, request)
            case states.IGNORED:
                return Discard(_reason(info.retval, "ignored"))
            case states.RETRY:
                return Discard(f"it asked for a retry that it did not send: {_reason(info.retval, 'no reason')}")
        return self._result(retval, request)

    def _why_final(self, error: BaseException, retries: int) -> str:
        """The reason why an error of the task was not tried again."""
        most = self._task.max_retries
        asks = retries > 0 or hasattr(self._task, "autoretry_for")
        if isinstance(error, MaxRetriesExceededError) or (asks and most is not None and retries >= most):
            return f"the task's retries are exhausted, after {retries} of them"
        return "the task asked for no retry"

    def _rejected(
        self, rejection: Reject, job: AdoptedJob, context: Context, request: dict[str, Any]
    ) -> Resend | Discard:
        reason = f"rejected: {rejection.reason}" if rejection.reason is not None else "rejected"
        if not rejection.requeue:
            store_failure(self._task, request, rejection)
            return Discard(reason)
        delivery_info = {**(job.request.get("delivery_info") or {}), "redelivered": True}
        again = job.model_copy(update={"request": {**job.request, "delivery_info": delivery_info}})
        return Resend(encode(again, id=context.job_id, queue=context.queue), failed=False, reason=reason)

    def _result(self, value: Any, request: dict[str, Any]) -> JsonResult | None:
        ignored = request.get("ignore_result")
        if self._task.ignore_result if ignored is None else ignored:
            return None
        return adopted_result(value, self._settings.max_result_bytes_inline, "the application's backend has all of it")


def _resend(resent: Resent, retry: Any, *, failed: bool) -> Resend:
    assert resent.envelope is not None
    wait = timedelta(0) if resent.due_at is None else max(resent.due_at - datetime.now(UTC), timedelta(0))
    error = getattr(retry, "exc", None)
    reason = _reason(retry, "") if failed else f"replaced by {resent.envelope.kind}"
    traceback = traceback_of(error) if isinstance(error, BaseException) else None
    return Resend(resent.envelope, wait, failed, reason, traceback)


def _reason(error: Any, otherwise: str) -> str:
    if isinstance(error, Ignore):
        return str(error) or otherwise
    exc = getattr(error, "exc", None)
    if isinstance(exc, BaseException):
        return error_line(exc)
    return str(error) or otherwise
