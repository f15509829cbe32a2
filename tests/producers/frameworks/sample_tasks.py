"""Django tasks for tests; `django_project` must have set Django up."""

from __future__ import annotations

from typing import Any

from django_tasks import TaskContext, task
from django_tasks.signals import task_enqueued, task_finished, task_started

signals: list[tuple[str, str, str]] = []
"""Signals that were sent: name, id of the task's result, and its status."""


class Unlucky(Exception):
    """Has a line break, as messages of databases have."""


@task()
def add(*numbers: int, to: int = 0) -> int:
    return sum(numbers, to)


@task(priority=7, queue_name="mails")
async def greet(name: str) -> str:
    return f"Hello {name}"


@task(takes_context=True)
def look(context: TaskContext) -> dict[str, Any]:
    result = context.task_result
    return {"id": result.id, "attempt": context.attempt, "status": result.status, "errors": len(result.errors)}


@task()
def fail() -> None:
    raise Unlucky("one line\nand another: with a colon")


@task(takes_context=True)
def flaky(context: TaskContext) -> int:
    if context.attempt < 3:
        raise ConnectionError(f"attempt {context.attempt}")
    return context.attempt


@task(takes_context=True)
async def flaky_async(context: TaskContext) -> list[str]:
    if context.attempt < 2:
        raise ConnectionError(f"attempt {context.attempt}")
    return [error.exception_class_path for error in context.task_result.errors]


@task()
def leave() -> None:
    raise SystemExit("enough")


@task()
def opaque() -> object:
    return object()


def _keep(name: str) -> Any:
    def receive(sender: type, task_result: Any, **_: Any) -> None:
        signals.append((name, task_result.id, str(task_result.status.value)))

    return receive


for _name, _signal in (("enqueued", task_enqueued), ("started", task_started), ("finished", task_finished)):
    _signal.connect(_keep(_name), weak=False)
