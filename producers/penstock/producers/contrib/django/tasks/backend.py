"""`PenstockBackend`: tasks are written to the outbox of Django's database, in the transaction of the caller."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from penstock.producers.contrib.django.outbox import Outbox
from penstock.producers.contrib.django.running import producer
from penstock.producers.contrib.django.tasks.api import BaseTaskBackend, normalize_json, task_enqueued
from penstock.producers.contrib.django.tasks.kinds import adopt, find_task, lane
from penstock.producers.contrib.django.tasks.options import Options
from penstock.producers.contrib.django.tasks.results import make_result, read_result, sent_at
from penstock.producers.enqueue.options import EnqueueOptions
from penstock.schemas.jobs.kind import registry

APP = "penstock.producers.contrib.django"


class PenstockBackend(BaseTaskBackend):
    """A backend for `TASKS`.

    Each task is a kind, named by its module path. Its priority is `high` above 0, `normal` at 0, `low` below.

    Raises:
        ImproperlyConfigured: an option is wrong, see `Options`, or the name of a queue.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._options = Options(alias, self.options)
        for queue in self.queues:
            try:
                registry.add_queue(queue)
            except ValueError as error:
                raise ImproperlyConfigured(f"TASKS[{alias!r}]['QUEUES']: {error}") from error

    def validate_task(self, task: Any) -> None:
        """Check a task as Django does, and make its kind known: each task comes here when it is declared.

        Raises:
            InvalidTask: as Django's; KindError: its module path or queue cannot be a kind's.
        """
        super().validate_task(task)
        adopt(task, self._options)

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Write a task into the outbox, with one INSERT, to be sent if and when the transaction is committed.

        Raises:
            InvalidTask: the task is not one for this backend. TypeError: an argument is not a JSON value.
            InvalidJob: JSON cannot hold an argument, or all of them are too large (also UnknownQueue, PayloadTooLarge).
        """
        self.validate_task(task)
        run_after = task.run_after
        if run_after is not None and timezone.is_naive(run_after):
            run_after = timezone.make_aware(run_after)
        request = {"backend": self.alias, "queue_name": task.queue_name, "priority": task.priority}
        if task.run_after is not None:
            request["run_after"] = task.run_after.isoformat()
        payload = {"args": normalize_json(list(args)), "kwargs": normalize_json(dict(kwargs)), "request": request}
        options: EnqueueOptions = {
            "queue": task.queue_name,
            "priority": lane(task.priority),
            "run_at": run_after,
        }
        envelope = _outbox().write(adopt(task, self._options)(**payload), options, self._options.database)
        result = make_result(task, envelope.id, payload, enqueued_at=sent_at(envelope))
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """The task's result, as the ledger has it, or the outbox before.

        Raises:
            TaskResultDoesNotExist: no task with this id is on record, any more or at all.
            LedgerUnavailable: the ledger cannot be reached. ConfigError: SQLAlchemy is not installed.
        """
        ledger = producer()._ledger  # of the producer, since a test of the user's replaces that
        return read_result(str(result_id), ledger, self._options.database)

    def check(self, **kwargs: Any) -> list[Any]:
        """Errors where the outbox has no table, since its app is not installed, and where options are for no task."""
        errors = []
        if not apps.is_installed(APP):
            message = f"TASKS[{self.alias!r}] has PenstockBackend, and INSTALLED_APPS lacks the app with its outbox"
            hint = f"Add {APP!r} to INSTALLED_APPS, and run manage.py migrate penstock."
            errors.append(checks.Error(message, hint=hint, id="penstock.E001"))
        for path in self._options.tasks:
            if find_task(path) is None:
                message = f"TASKS[{self.alias!r}]['OPTIONS']['tasks'] names {path!r}, which is not a task"
                hint = "Name it by its module and function, such as shop.tasks.charge."
                errors.append(checks.Error(message, hint=hint, id="penstock.E002"))
        return errors


@functools.cache
def _outbox() -> Outbox:
    return Outbox.from_settings()
