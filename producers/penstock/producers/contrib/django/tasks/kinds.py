"""Kinds of Django's tasks: each task that is declared for a backend of ours is one, named by its module path."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Any, NamedTuple

from penstock.producers.contrib.django.tasks.api import Task
from penstock.producers.contrib.django.tasks.options import Options
from penstock.schemas.jobs.adopted import AdoptedJob, adopt_kind
from penstock.schemas.jobs.kind import Priority, registry


class DjangoTask(AdoptedJob):
    """A call of a task.

    Attributes:
        request: `backend`, `queue_name`, `priority` and `run_after` (ISO 8601) of the task as it was enqueued.
    """


class AdoptedTask(NamedTuple):
    """A task, as it was declared, and the job class of its kind."""

    task: Any
    job: type[DjangoTask]

    @property
    def is_async(self) -> bool:
        return iscoroutinefunction(self.task.func)


_adopted: dict[str, AdoptedTask] = {}


def adopt(task: Any, options: Options) -> type[DjangoTask]:
    """The job class of a task, made when the task is first seen.

    Raises:
        KindError: its module path or an option cannot be a kind's; DuplicateKind: a `Job` has it as its kind.
    """
    path: str = task.module_path
    adopted = _adopted.get(path)
    if adopted is None or adopted.task.func is not task.func:
        policy = {"queue": task.queue_name, "priority": lane(task.priority), **options.policy(path)}
        adopted = _adopted[path] = AdoptedTask(task, adopt_kind(DjangoTask, path, task.func.__module__, **policy))
    return adopted.job


def adopted_tasks() -> Iterator[AdoptedTask]:
    """All tasks that this process has declared."""
    return iter(list(_adopted.values()))


def find_task(path: str) -> Any:
    """The task with this module path, or a former one; it is imported if need be. None: it does not lead to a task."""
    kind = registry.find(path)
    if (adopted := _adopted.get(path if kind is None else kind.name)) is not None:
        return adopted.task
    from django.utils.module_loading import import_string

    try:
        value = import_string(path)
    except ImportError:
        return None
    return value if isinstance(value, Task) else None


def lane(priority: int) -> Priority:
    """Priority from -100 to 100 → one of the three lanes of a queue."""
    return "high" if priority > 0 else "low" if priority < 0 else "normal"
