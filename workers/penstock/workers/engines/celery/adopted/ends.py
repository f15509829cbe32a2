"""Ends of tasks that Celery's tracer does not see: the application's backend, its callbacks and signals learn of them.

Celery's worker does the same in the process that started the pool: for a task that was revoked, or has expired, or took
too long, or whose process died.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.app.task import Context as TaskContext
from celery.app.task import get_actual_ignore_result
from celery.signals import task_failure, task_revoked

from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.states import Outcome
from penstock.schemas.wire.codec import Message
from penstock.workers.engines.celery.adopted.request import request_of
from penstock.workers.executor.runtime.observers import Observer

log = logging.getLogger("penstock.worker")

_TIMED_OUT, _EXPIRED = "TimedOut:", "expired "
"""Beginnings of errors of the executor."""
REVOKED_BY_STAMP = "revoked by a stamp"
"""The reason of a task that was not run."""


class EndsObserver(Observer):
    """Stores such ends, from a thread of its own: the backend may be slow.

    Arguments:
        worker: the worker's name.
    """

    def __init__(self, app: celery.Celery, worker: str) -> None:
        self._app, self._worker = app, worker
        self._thread = ThreadPoolExecutor(1, "penstock celery ends")

    def refused(self, message: Message, reason: str) -> None:
        if reason == "cancelled":
            self._store(message, store_revoked, "revoked", False, False)

    def ended(self, outcome: AttemptOutcome) -> None:
        message, error = outcome.claim.message, outcome.error or ""
        match outcome.name:
            case Outcome.CANCELLED:
                self._store(message, store_revoked, "terminated", True, False)
            case Outcome.DISCARDED if error.startswith(_EXPIRED):
                self._store(message, store_revoked, "expired", False, True)
            case Outcome.DISCARDED if error == REVOKED_BY_STAMP:
                self._store(message, store_revoked, "revoked", False, False)
            case Outcome.DEAD if error.startswith(_TIMED_OUT):
                timeout = message.timeout
                seconds = None if timeout is None else timeout.total_seconds()
                self._store(message, store_failure, TimeLimitExceeded(seconds))
            case Outcome.DEAD if outcome.reason in ("crashed", "interrupted"):
                self._store(message, store_failure, WorkerLostError(error))

    def _store(self, message: Message, store: Callable[..., None], *arguments: Any) -> None:
        if isinstance(message.job, AdoptedJob):
            self._thread.submit(self._call, message, store, arguments)

    def _call(self, message: Message, store: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        task = self._app.tasks[message.kind.name]
        try:
            _, _, request = request_of(self._app, task.name, message.job, message.id, self._worker)
            store(task, request, *arguments)
        except Exception:
            log.exception("the end of task %s is not in the application's result backend", message.id)


def store_revoked(
    task: celery.Task, request: dict[str, Any], reason: str, terminated: bool = False, expired: bool = False
) -> None:
    """Store that a task was revoked, as Celery's worker does."""
    context = TaskContext(request, called_directly=False)
    task.backend.mark_as_revoked(context.id, reason, request=context, store_result=_stores(task, context))
    task_revoked.send(sender=task, request=context, terminated=terminated, signum=None, expired=expired)


def store_failure(task: celery.Task, request: dict[str, Any], error: Exception) -> None:
    """Store a failure that did not come out of the tracer, as Celery's worker does."""
    context = TaskContext(request, called_directly=False)
    task.backend.mark_as_failure(context.id, error, request=context, store_result=_stores(task, context))
    arguments = {"args": context.args, "kwargs": context.kwargs}
    task_failure.send(sender=task, task_id=context.id, exception=error, **arguments, traceback=None, einfo=None)


def _stores(task: celery.Task, context: TaskContext) -> bool:
    return bool(task.store_errors_even_if_ignored or not get_actual_ignore_result(task, context))
