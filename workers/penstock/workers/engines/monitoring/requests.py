"""Jobs as Celery's worker describes requests, for `celery inspect` and Flower."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.queries.jobs import find_waiting
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.kind import registry
from penstock.schemas.wire.codec import HEADER, Message
from penstock.workers.engines.monitoring.event_messages import format_values
from penstock.workers.engines.worker import Worker

log = logging.getLogger("penstock.remote")

Request = dict[str, Any]

_MOST_SCHEDULED = 500
_LONGEST_VALUES = 1000
_TIMER_PRIORITY = 6
"""The priority that all tasks have in the timer of Celery's worker."""


def describe_message(message: Message, worker: str, started: float | None = None) -> Request:
    """A job that a worker has.

    Arguments:
        worker: the worker's name.
        started: Unix time; None: it has not started.
    """
    request = _describe(message.id, message.kind.name, message.job.redacted(), message.queue, message.priority, worker)
    return request if started is None else request | {"time_start": started, "worker_pid": os.getpid()}


def describe_scheduled(worker: Worker, ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The first 500 jobs of a worker's queues that wait in the ledger until they are due; none while it is unavailable.

    Arguments:
        ids: only these jobs; None: all.
    """
    queues = sorted(worker.consumer.queues)
    try:
        rows = find_waiting(worker.database, queues, ids=None if ids is None else sorted(ids), limit=_MOST_SCHEDULED)
    except LedgerUnavailable as error:  # monitors expect a list
        log.warning("remote control lists no jobs that are not due: %s", error)
        return []
    return [
        {
            "eta": row.due_at.isoformat(),
            "priority": _TIMER_PRIORITY,
            "request": _describe(row.id, row.kind, _fields_of(row), row.queue, row.priority, worker.name),
        }
        for row in rows
    ]


def _fields_of(row: Any) -> dict[str, Any]:
    return registry.redact(row.kind, json.loads(row.payload) or {})


def _describe(job_id: str, name: str, fields: Mapping[str, Any], queue: str, priority: str, worker: str) -> Request:
    """The request of a job. `acknowledged` is false, as of a task with `acks_late` there: the broker has the job until
    its outcome is on record, so a worker that dies loses none."""
    delivery_info: dict[str, Any] = {"exchange": "", "priority": priority, "redelivered": None}
    args: Any = []
    kwargs: Any = dict(fields)
    kind = registry.find(name)
    if kind is not None and issubclass(kind.job, AdoptedJob):
        args, kwargs, sent = fields.get("args"), fields.get("kwargs"), fields.get("request") or {}
        if "body" in sent.get(HEADER, {}):  # no JSON, so only the client's description can be shown
            args, kwargs = sent.get("argsrepr"), sent.get("kwargsrepr")
        delivery_info |= sent.get("delivery_info") or {}
    return {
        "id": job_id,
        "name": name,
        "args": _shown(args),
        "kwargs": _shown(kwargs),
        "type": name,
        "hostname": worker,
        "time_start": None,
        "acknowledged": False,
        "delivery_info": {**delivery_info, "routing_key": queue},
        "worker_pid": None,
    }


def _shown(values: Any) -> Any:
    """Values that are not large, and others as text."""
    text = format_values(values)
    return values if len(text) < _LONGEST_VALUES else text
