"""Settings for Django's own tests of tasks, and the backends that they use in the place of Django's."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from django import VERSION

from penstock.producers.testing import Kit, testing

SECRET_KEY = "only for tests, only for tests"
INSTALLED_APPS = ["penstock.producers.contrib.django", *(["django_tasks"] if VERSION < (6, 0) else [])]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ["SUITE_FOLDER"]) / "none.db",
        "TEST": {"NAME": str(Path(os.environ["SUITE_FOLDER"]) / "suite.db")},
    }
}
USE_TZ = True


@cache
def block() -> tuple[testing, Kit]:
    """The block in which all jobs of this process are caught, which lasts as long as the process."""
    caught = testing()
    return caught, caught.__enter__()


def __getattr__(name: str) -> Any:
    # Django reads this module as its settings, before there can be a backend.
    if name not in ("ImmediateBackend", "DummyBackend"):
        raise AttributeError(name)
    from penstock.producers.contrib.django.models import OutboxEntry
    from penstock.producers.contrib.django.tasks import PenstockBackend

    class ImmediateBackend(PenstockBackend):
        """Runs each task as soon as it is enqueued."""

        def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
            _, kit = block()
            result = super().enqueue(task, args, kwargs)
            kit.take_outbox("default")
            kit.drain(raising=False)
            return self.get_result(result.id)

    class DummyBackend(PenstockBackend):
        """Runs nothing."""

        def __init__(self, alias: str, params: dict[str, Any]) -> None:
            super().__init__(alias, params)
            block()

        @property
        def results(self) -> list[Any]:
            return [self.get_result(entry.job_id) for entry in OutboxEntry.objects.order_by("position")]

        def clear(self) -> None:
            OutboxEntry.objects.all().delete()

    globals().update(ImmediateBackend=ImmediateBackend, DummyBackend=DummyBackend)
    return globals()[name]
