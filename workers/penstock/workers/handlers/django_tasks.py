"""Handlers of Django's tasks: each calls the function of a task, and sends Django's signals, as its own backends do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from traceback import format_exception
from typing import Any

from asgiref.sync import sync_to_async

from penstock.producers.contrib.django.tasks.api import (
    TaskContext,
    TaskError,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)
from penstock.producers.contrib.django.tasks.kinds import AdoptedTask, DjangoTask, adopted_tasks
from penstock.producers.contrib.django.tasks.results import local, make_result
from penstock.schemas.jobs.kind import Kind
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import Handler, handlers
from penstock.workers.handlers.returns import Permanent

_STOPS = (asyncio.CancelledError, KeyboardInterrupt)
"""These end an attempt, and say nothing about the task."""


def add_handlers() -> None:
    """Add a handler for each task that was declared since the last call.

    Raises:
        KindError: the kind of one has a handler of the user's.
    """
    for adopted in adopted_tasks():
        if (present := handlers.find(adopted.job.kind())) is None or present.kind.job is not adopted.job:
            handlers.add(_handler(adopted))


def _handler(adopted: AdoptedTask) -> Handler:
    # With the name and module of the task's function: messages name them, and a child process imports the module.
    function = wraps(adopted.task.func)(_coroutine(adopted) if adopted.is_async else _plain_function(adopted))
    return Handler(adopted.job.kind(), function, "async" if adopted.is_async else "thread", "ctx", {})


def _plain_function(adopted: AdoptedTask) -> Callable[..., Any]:
    def run_task(job: DjangoTask, ctx: Context) -> Any:
        result = _first_result(adopted, job, ctx) if ctx.attempt == 1 else _backend(adopted, job).get_result(ctx.job_id)
        call = _Call(adopted, job, result)
        task_started.send(sender=call.sender, task_result=result)
        try:
            value = call.succeeded(adopted.task.func(*call.args, **job.kwargs))
        except _STOPS:
            raise
        except BaseException as error:
            if call.failed(error):
                task_finished.send(sender=call.sender, task_result=result)
            raise
        task_finished.send(sender=call.sender, task_result=result)
        return value

    return run_task


def _coroutine(adopted: AdoptedTask) -> Callable[..., Any]:
    async def run_task(job: DjangoTask, ctx: Context) -> Any:
        first = ctx.attempt == 1
        result = _first_result(adopted, job, ctx) if first else await _backend(adopted, job).aget_result(ctx.job_id)
        call = _Call(adopted, job, result)
        await sync_to_async(task_started.send)(sender=call.sender, task_result=result)
        try:
            value = call.succeeded(await adopted.task.func(*call.args, **job.kwargs))
        except _STOPS:
            raise
        except BaseException as error:
            if call.failed(error):
                await sync_to_async(task_finished.send)(sender=call.sender, task_result=result)
            raise
        await sync_to_async(task_finished.send)(sender=call.sender, task_result=result)
        return value

    return run_task


class _Call:
    """A call of a task: its arguments, and its end in the `TaskResult` that the task's context and the signals have."""

    def __init__(self, adopted: AdoptedTask, job: DjangoTask, result: Any) -> None:
        self._kind: Kind = adopted.job.kind()
        self._result = result
        self.sender = type(result.task.get_backend())
        self.args = [TaskContext(task_result=result), *job.args] if adopted.task.takes_context else job.args

    def succeeded(self, value: Any) -> Any:
        """The value as JSON. Raises TypeError: it is not a JSON value."""
        value = normalize_json(value)
        self._end(TaskResultStatus.SUCCESSFUL)
        object.__setattr__(self._result, "_return_value", value)
        return value

    def failed(self, error: BaseException) -> bool:
        """Add the error. Returns whether it is the end of the task, by its retry policy."""
        path = f"{type(error).__module__}.{type(error).__qualname__}"
        self._result.errors.append(
            TaskError(exception_class_path=path, traceback="".join(format_exception(error))),
        )
        enqueued_at = self._result.enqueued_at
        age = (local(datetime.now(UTC)) or enqueued_at) - enqueued_at
        reason = self._kind.retry.exhausted_reason(type(error), len(self._result.errors), age)
        if reason is None and self._kind.delivery != "at_most_once" and not isinstance(error, Permanent):
            return False
        self._end(TaskResultStatus.FAILED)
        return True

    def _end(self, status: Any) -> None:
        object.__setattr__(self._result, "status", status)
        object.__setattr__(self._result, "finished_at", local(datetime.now(UTC)))


def _first_result(adopted: AdoptedTask, job: DjangoTask, ctx: Context) -> Any:
    now = datetime.now(UTC)
    return make_result(
        adopted.task,
        ctx.job_id,
        job.model_dump(),
        status=TaskResultStatus.RUNNING,
        enqueued_at=ctx.enqueued_at,
        started_at=now,
        last_attempted_at=now,
        worker_ids=[ctx.worker or ""],
    )


def _backend(adopted: AdoptedTask, job: DjangoTask) -> Any:
    backend = job.request.get("backend")
    return (adopted.task if backend is None else adopted.task.using(backend=backend)).get_backend()
