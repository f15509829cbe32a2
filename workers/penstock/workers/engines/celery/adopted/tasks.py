"""Tasks of an application as kinds, with handlers that run them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Self

import celery
from billiard.exceptions import SoftTimeLimitExceeded
from celery.utils.time import rate
from pydantic import TypeAdapter

from penstock.config.errors import KindError, UndecodableMessage
from penstock.config.settings import Settings
from penstock.producers.limits.rules import store_url
from penstock.producers.senders import scheme
from penstock.schemas.jobs.adopted import AdoptedJob, adopt_kind
from penstock.schemas.jobs.durations import LONGEST
from penstock.schemas.jobs.limits import Rate
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
_PERIOD = 3600
"""Seconds of the period of a rate: so long that most rates that replace one are a whole number in it."""
_UNITS = (1, 60, 3600)


class CeleryJob(AdoptedJob):
    """The base of the jobs of tasks.

    Attributes:
        accept: content types that the application accepts.
        longest: the seconds that any of them may run, see `longest_limit`.
    """

    accept: ClassVar[frozenset[str]] = frozenset({JSON})
    longest: ClassVar[float] = math.inf

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

    def time_limits(self) -> tuple[timedelta | None, timedelta | None]:
        limits = self.request.get("timelimit")
        if not limits or not isinstance(limits, list | tuple) or len(limits) != 2:
            return None, None
        hard, soft = (limit if _is_limit(limit) else None for limit in limits)
        return _bounded(hard, soft, self.longest)


def adopt_tasks(app: celery.Celery, settings: Settings) -> None:
    """Register each task of an application as a kind with a handler.

    Raises:
        KindError: a line for each task that cannot be one.
    """
    CeleryJob.accept, CeleryJob.longest = accepted(app), longest_limit(settings)
    problems = []
    for name, task in sorted(app.tasks.items()):
        try:
            _adopt_task(app, task, settings)
        except KindError as error:
            problems.append(f"task {name!r}: {error}")
    if problems:
        raise KindError("\n".join(problems))


def _adopt_task(app: celery.Celery, task: celery.Task, settings: Settings) -> None:
    hard, soft = time_limits(app, task, longest_limit(settings))
    job = adopt_kind(
        CeleryJob,
        task.name,
        type(task).__module__,
        queue=queue_of(app, task),
        timeout=hard,
        soft_timeout=soft,
        limits=limits_of(app, task, settings),
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


def time_limits(
    app: celery.Celery, task: celery.Task, longest: float = math.inf
) -> tuple[timedelta | None, timedelta | None]:
    """The hard and the soft limit. A soft one that would not come first has no effect.

    Arguments:
        longest: see `longest_limit`.
    """
    hard = hard_limit(app, task)
    soft = task.soft_time_limit if task.soft_time_limit is not None else app.conf.task_soft_time_limit
    if hard and soft and soft >= hard:
        soft = None
    return _bounded(hard, soft, longest)


def _is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < LONGEST.total_seconds()


def _bounded(hard: float | None, soft: float | None, longest: float) -> tuple[timedelta | None, timedelta | None]:
    """Limits in seconds as durations, the hard one within the longest that holds here."""
    if hard and hard >= longest:
        hard = within(longest)
        soft = min(soft, within(hard)) if soft else soft
    return tuple(None if not seconds else timedelta(seconds=seconds) for seconds in (hard, soft))  # type: ignore[return-value]


def limits_of(app: celery.Celery, task: celery.Task, settings: Settings) -> tuple[Rate, ...]:
    """The limit of a task; empty: it has none that can be read, or no store keeps it."""
    per_second = _per_second(app, task)
    return (_rate(per_second, _PERIOD),) if per_second and store_url(settings) is not None else ()


def written_limits_of(app: celery.Celery, task: celery.Task) -> tuple[Rate, ...]:
    """The limit of a task in the shortest period in which it is a whole number."""
    per_second = _per_second(app, task)
    if not per_second:
        return ()
    whole = (unit for unit in _UNITS if per_second * unit > 0.999 and abs(per_second * unit % 1 - 0.5) > 0.499)
    return (_rate(per_second, next(whole, _PERIOD)),)


def doubts_about_rates(app: celery.Celery, settings: Settings) -> Iterator[str]:
    """A line for what does not mean here what it means under Celery's worker."""
    limited = {name: task for name, task in sorted(app.tasks.items()) if task.rate_limit}
    if unreadable := [name for name, task in limited.items() if _per_second(app, task) is None]:
        yield f"rate_limit of {', '.join(unreadable)}: is not a rate, and has no effect; write it as 10/s, 100/m or 5/h"
    readable = [name for name, task in limited.items() if _per_second(app, task)]
    if readable and store_url(settings) is None:
        yield f"rate_limit of {', '.join(readable)}: has no effect without a Redis; set PENSTOCK_LIMITS_URL"
    elif readable:
        yield f"rate_limit of {', '.join(readable)}: holds for all workers together, and not for each of them"


def _rate(per_second: float, period: int) -> Rate:
    most = round(per_second * period)
    return Rate(most, per=period) if most else Rate(1, per=1 / per_second)


def _per_second(app: celery.Celery, task: celery.Task) -> float | None:
    """How many may start in a second; 0: any number. None: it cannot be read."""
    if app.conf.worker_disable_rate_limits:
        return 0.0
    try:
        per_second = float(rate(task.rate_limit))
    except (ValueError, KeyError, TypeError):
        return None
    return per_second if 0 <= per_second < 1e5 else None
