"""The request of a task, as Celery's worker makes it of a message."""

from __future__ import annotations

import base64
import json
from typing import Any, cast

import celery
from celery import signals
from celery.worker.request import Request
from kombu.message import Message as KombuMessage
from kombu.serialization import loads, prepare_accept_content
from kombu.utils.json import loads as loads_typed

from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.job import Job
from penstock.schemas.wire.codec import HEADER, Message
from penstock.schemas.wire.forms import EMBED_OF_CELERY
from penstock.workers.executor.runtime.observers import Observer


def accepted(app: celery.Celery) -> frozenset[str]:
    """The content types that an application accepts."""
    return frozenset(prepare_accept_content(app.conf.accept_content))  # type: ignore[no-untyped-call]


def request_of(
    app: celery.Celery, name: str, job: Job, job_id: str, hostname: str | None
) -> tuple[Any, Any, dict[str, Any]]:
    """The arguments, the keyword arguments and the request of a task.

    Raises:
        Exception: whatever a serializer raises for the bytes that a message had.
    """
    adopted = cast(AdoptedJob, job)
    request = dict(adopted.request)
    content = request.pop(HEADER, {})
    args, kwargs = adopted.args, dict(adopted.kwargs)
    if "body" in content:
        data = base64.b64decode(content["body"])
        args, kwargs, embed = loads(  # type: ignore[no-untyped-call]
            data, content["content_type"], content["content_encoding"], accept=accepted(app)
        )
        request |= embed or {}
    elif content.get("typed"):
        args, kwargs, request = loads_typed(json.dumps([args, kwargs, request]))  # type: ignore[no-untyped-call]
    return (
        args,
        kwargs,
        request
        | {
            "id": job_id,
            "task": name,
            "args": args,
            "kwargs": kwargs,
            "hostname": hostname,
            "is_eager": False,
            "called_directly": False,
        },
    )


class ReceivedObserver(Observer):
    """Sends Celery's signal `task_received` for adopted tasks, with a request as Celery's worker makes it.

    Arguments:
        worker: the worker's name.
    """

    def __init__(self, app: celery.Celery, worker: str) -> None:
        self._app, self._worker = app, worker

    def received(self, message: Message) -> None:
        if signals.task_received.receivers and isinstance(message.job, AdoptedJob):
            signals.task_received.send(sender=self._worker, request=self._request(message))

    def _request(self, message: Message) -> Request:
        args, kwargs, request = request_of(self._app, message.kind.name, message.job, message.id, self._worker)
        delivery_info = request.get("delivery_info") or {}
        properties = {**(request.get("properties") or {}), "priority": delivery_info.get("priority")}
        return Request(
            KombuMessage(delivery_info=delivery_info, properties=properties),  # type: ignore[no-untyped-call]
            app=self._app,
            task=self._app.tasks[message.kind.name],
            hostname=self._worker,
            headers=request,
            body=(args, kwargs, {name: request.get(name) for name in EMBED_OF_CELERY}),
            decoded=True,
        )
