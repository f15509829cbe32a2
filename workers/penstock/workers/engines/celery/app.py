"""The Celery application of a worker: its configuration, and each kind as a task."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import celery
from celery.result import AsyncResult

from penstock.config.settings import Settings
from penstock.producers.senders import Sender, open_sender_from
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.kind import Kind
from penstock.schemas.wire.codec import encode, parse_time
from penstock.workers.engines.host import Host
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.handlers.registry import handlers

_PARTS = (
    *("celery.app.amqp", "celery.app.control", "celery.app.events", "celery.app.log", "celery.app.routes"),
    *("celery.backends.base", "celery.events.dispatcher", "celery.events.receiver", "kombu.mixins"),
    *("celery.worker.autoscale", "celery.worker.components", "celery.worker.strategy", "billiard.pool"),
    "celery.worker.consumer.delayed_delivery",
)
"""Modules that Celery imports by their names when a worker starts."""


after_setup: list[Callable[[Host], None]] = []
"""Called when Celery's program is set up, which makes its own application the current one."""


def import_parts() -> None:
    """Import all that a worker of Celery uses, before processes are forked that share it."""
    for name in _PARTS:
        importlib.import_module(name)


def make_app(settings: Settings) -> celery.Celery:
    """A Celery application on our broker, with a task for every kind that has a handler."""
    # Without Celery's fixup for Django, which would set it up again: `handlers.django_project` serves both engines.
    app = celery.Celery("penstock", set_as_current=True, fixups=set())
    app.conf.update(
        **kombu_connection.celery_settings(settings.broker_url),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # what Redis refuses now it may accept later
        # Never declared nor consumed: the dispatcher takes what unmodified clients put on "celery".
        task_default_queue=f"{settings.prefix}.none",
        task_ignore_result=True,
        worker_enable_remote_control=settings.remote_control != "off",
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        # Without this Celery warns, at every lost connection, of tasks that it does not have here.
        worker_cancel_long_running_tasks_on_connection_loss=True,
    )
    sender = open_sender_from(settings)
    with warnings.catch_warnings():
        # Celery shares tasks of an application that a handler's module imports, and kinds may have their names.
        warnings.filterwarnings("ignore", "\\s*Task name .* is already registered")
        for handler in handlers:
            if not issubclass(handler.kind.job, AdoptedJob):
                app.register_task(_task(handler.kind, sender, settings.max_payload_bytes))
    return app


def _task(kind: Kind, sender: Sender, max_bytes: int) -> celery.Task:
    """A task named like the kind. The executor runs it; Celery's API sends it through our sender."""

    class KindTask(celery.Task):  # type: ignore[misc]  # celery has no types
        name = kind.name
        __doc__ = kind.job.__doc__

        def run(self, *args: Any, **fields: Any) -> Any:
            raise TypeError(f"{kind.name} is run by the executor; call its handler, or send the job")

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult:
            fields = {**dict(zip(kind.job.model_fields, args or (), strict=False)), **(kwargs or {})}
            envelope = encode(
                kind.job.model_validate(fields),
                id=options.get("task_id"),
                queue=options.get("queue"),
                due_at=_due(options),
                expires_at=_time(options.get("expires")),
                max_bytes=max_bytes,
            )
            sender.send([envelope])
            return AsyncResult(envelope.id, app=self.app)

    return KindTask()


def _due(options: dict[str, Any]) -> datetime | None:
    return _time(options.get("eta") if options.get("countdown") is None else options["countdown"])


def _time(value: Any) -> datetime | None:
    """A time as Celery takes it: a datetime, an ISO text, or seconds from now."""
    if isinstance(value, int | float):
        return datetime.now(UTC) + timedelta(seconds=value)
    return parse_time(value)
