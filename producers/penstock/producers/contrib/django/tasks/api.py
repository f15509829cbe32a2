"""Names of `django.tasks`, or of its backport: that where Django is older than 6, or `INSTALLED_APPS` has it."""

from __future__ import annotations

from django import VERSION
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

BACKPORT = VERSION < (6, 0) or any(app.split(".")[0] == "django_tasks" for app in settings.INSTALLED_APPS)

if not BACKPORT:
    from django.tasks import Task, TaskContext, TaskResult, TaskResultStatus
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import TaskError
    from django.tasks.exceptions import TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
else:
    try:
        import django_tasks  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImproperlyConfigured(
            "Django before 6.0 has no tasks of its own, and the backport is not installed: install django-tasks, and "
            "add 'django_tasks' to INSTALLED_APPS"
        ) from error
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json

__all__ = [
    "BACKPORT",
    "BaseTaskBackend",
    "Task",
    "TaskContext",
    "TaskError",
    "TaskResult",
    "TaskResultDoesNotExist",
    "TaskResultStatus",
    "normalize_json",
    "task_enqueued",
    "task_finished",
    "task_started",
]
