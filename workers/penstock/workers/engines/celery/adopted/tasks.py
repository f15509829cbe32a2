"""Tasks of an application as kinds, with handlers that run them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar, Self

import celery
from billiard.exceptions import SoftTimeLimitExceeded
from pydantic import TypeAdapter

from penstock.config.errors import KindError, UndecodableMessage
from penstock.config.settings import Settings
from penstock.producers.senders import scheme
from penstock.schemas.jobs.adopted import AdoptedJob, adopt_kind
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.wire.celery_tasks import JSON, PROPERTIES, task_fields
from penstock.schemas.wire.codec import HEADER
from penstock.workers.engines.celery.adopted.control import is_revoked_by_stamp
from penstock.workers.engines.celery.adopted.ends import REVOKED_BY_STAMP
from penstock.workers.engines.celery.adopted.request import accepted
from penstock.workers.engines.celery.adopted.run import TaskRunner
from penstock.workers.handlers.registry import Handler, handlers
from penstock.workers.handlers.returns import Discard

CHILDREN = "penstock.workers.engines.celery.adopted.children"
"""The module that a process imports to know the handlers."""
_NO_RETRY = RetryPolicy(max_attempts=1)
"""A task decides itself about its retries; an error that it does not handle is final, as in Celery."""
_RESULT: TypeAdapter[Any] = TypeAdapter(Any)


class CeleryJob(AdoptedJob):
    """The base of the jobs of tasks.

    Attributes:
        accept: content types that the application accepts.
    """

    accept: ClassVar[frozenset[str]] = frozenset({JSON})

    @classmethod
    def from_stock(cls, headers: Mapping[str, Any], body: bytes) -> Self:
        fields = task_fields(headers, headers.get(PROPERTIES) or {}, body)
        content = fields["request"].get(HEADER, {}).get("content_type", JSON)
        if content not in cls.accept:
            raise UndecodableMessage(
                "undecodable",
                f"its content type is {content}, and the application's accept_content has only "
                f"{', '.join(sorted(cls.accept))}",
            )
        return cls.model_construct(None, **fields)  # type: ignore[return-value]


def adopt_tasks(app: celery.Celery, settings: Settings) -> None:
    """Register each task of an application as a kind with a handler.

    Raises:
        KindError: a line for each task that cannot be one.
    """
    CeleryJob.accept = accepted(app)
    problems = []
    for name, task in sorted(app.tasks.items()):
        try:
            _adopt_task(app, task, settings)
        except KindError as error:
            problems.append(f"task {name!r}: {error}")
    if problems:
        raise KindError("\n".join(problems))


def _adopt_task(app: celery.Celery, task: celery.Task, settings: Settings) -> None:
    hard, soft = _time_limits(app, task, settings)
    job = adopt_kind(
        CeleryJob,
        task.name,
        type(task).__module__,
        queue=queue_of(app, task),
        timeout=hard,
        soft_timeout=soft,
        retry=_NO_RETRY,
    )
    runner = TaskRunner(app, task, settings)

    def run(job: CeleryJob, context: Any) -> Any:
        return runner.run(job, context)

    # Its own name, so that two tasks are not taken for one, and the module to import where it is to run alone.
    run.__module__, run.__qualname__ = CHILDREN, task.name
    if hasattr(task.run, "__code__"):
        run.__wrapped__ = task.run  # type: ignore[attr-defined]  # for messages that name its file
    handlers.add(
        Handler(
            job.kind(),
            run,
            "thread",
            "context",
            {},
            result=_RESULT,
            soft_error=SoftTimeLimitExceeded,
            refuse=_refuse_revoked,
        )
    )


def _refuse_revoked(job: CeleryJob) -> Discard | None:
    return Discard(REVOKED_BY_STAMP) if is_revoked_by_stamp(job.request) else None


def queue_of(app: celery.Celery, task: celery.Task, options: Mapping[str, Any] | None = None) -> str:
    """The queue that the application's routes give a task.

    Arguments:
        options: of one call, such as `queue`, in place of the task's own; None: none.
    """
    queue = app.amqp.router.route({**_options(task), **(options or {})}, task.name).get("queue")
    return str(getattr(queue, "name", queue) or app.conf.task_default_queue)


def _options(task: celery.Task) -> dict[str, Any]:
    return {name: value for name, value in task._get_exec_options().items() if value is not None}


def hard_limit(app: celery.Celery, task: celery.Task) -> float | None:
    """The seconds that a task may run, as the application says."""
    limit: float | None = task.time_limit if task.time_limit is not None else app.conf.task_time_limit
    return limit


def longest_limit(settings: Settings) -> float:
    """The longest limit in seconds that holds here: RabbitMQ takes back what runs for its consumer timeout, and would
    deliver it to another worker."""
    return settings.rabbitmq_consumer_timeout_seconds if scheme(settings.broker_url) == "rabbitmq" else math.inf


def within(limit: float) -> float:
    """The seconds that end a task before a limit, with time to stop it."""
    return limit * 0.95


def _time_limits(
    app: celery.Celery, task: celery.Task, settings: Settings
) -> tuple[timedelta | None, timedelta | None]:
    """The hard and the soft limit. A soft one that would not come first has no effect."""
    hard, longest = hard_limit(app, task), longest_limit(settings)
    soft = task.soft_time_limit if task.soft_time_limit is not None else app.conf.task_soft_time_limit
    if hard and soft and soft >= hard:
        soft = None
    if hard and hard >= longest:
        hard = within(longest)
        soft = min(soft, within(hard)) if soft else soft
    return tuple(None if not seconds else timedelta(seconds=seconds) for seconds in (hard, soft))  # type: ignore[return-value]
