"""Results of Django's tasks: what the ledger has on record, or the outbox of a job that is on its way there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils import timezone

from penstock.config.errors import JobNotFound
from penstock.producers.contrib.django.tasks.api import TaskError, TaskResult, TaskResultDoesNotExist, TaskResultStatus
from penstock.producers.contrib.django.tasks.kinds import find_task
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import HEADER, Envelope, parse_time, payload

if TYPE_CHECKING:
    from penstock.producers.handles.connections import LedgerConnections

_STATUS = {
    State.RUNNING: TaskResultStatus.RUNNING,
    State.SUCCEEDED: TaskResultStatus.SUCCESSFUL,
    State.DEAD: TaskResultStatus.FAILED,
    State.DISCARDED: TaskResultStatus.FAILED,
    State.CANCELLED: TaskResultStatus.FAILED,
}
"""The states that wait are `READY`."""
_FAILED = (Outcome.RETRY, Outcome.DEAD, Outcome.CRASHED)
_WRAPPED = "RuntimeError: the handler raised "
"""Before the error of a task that ended with SystemExit."""


def make_result(task: Any, id: str, fields: Mapping[str, Any], **values: Any) -> Any:
    """A `TaskResult`.

    Arguments:
        task: as it was declared.
        fields: `args`, `kwargs` and `request` of the job.
        values: fields of the result; a new job's if not given. Times are aware.
    """
    request = fields.get("request") or {}
    value = values.pop("return_value", None)
    times = {name: values.pop(name, None) for name in _TIMES}
    result = TaskResult(
        task=_as_enqueued(task, request),
        id=id,
        args=fields.get("args") or [],
        kwargs=fields.get("kwargs") or {},
        backend=request.get("backend", task.backend),
        **{name: local(time) for name, time in times.items()},
        **{"status": TaskResultStatus.READY, "errors": [], "worker_ids": [], **values},
    )
    object.__setattr__(result, "_return_value", value)
    return result


_TIMES = ("enqueued_at", "started_at", "last_attempted_at", "finished_at")


def read_result(id: str, ledger: LedgerConnections, using: str | None) -> Any:
    """The result of a task by its id.

    Arguments:
        using: alias of the database with the outbox; None: as the routers say.

    Raises:
        TaskResultDoesNotExist: neither the ledger nor the outbox has it, or it is not of a task.
        LedgerUnavailable: the ledger cannot be reached.
    """
    # The dispatcher inserts a job into the ledger before it deletes it from the outbox, maybe between two looks here.
    result = _from_ledger(id, ledger) or _from_outbox(id, using) or _from_ledger(id, ledger)
    if result is None:
        raise TaskResultDoesNotExist(id)
    return result


def _from_ledger(id: str, ledger: LedgerConnections) -> Any:
    database = ledger.open()  # first: it says what to install where SQL is missing
    from penstock.ledger.queries.jobs import show

    try:
        row, attempts = show(database, id)
    except JobNotFound:
        return None
    if (task := find_task(row.kind)) is None:
        return None
    workers = [attempt.worker for attempt in attempts]
    started = [attempt.started_at for attempt in attempts]
    if row.state == State.RUNNING:
        workers.append(row.worker)
        started.append(row.started_at)
    status = _STATUS.get(State(row.state), TaskResultStatus.READY)
    return make_result(
        task,
        id,
        json.loads(row.payload),
        status=status,
        enqueued_at=row.enqueued_at,
        started_at=started[0] if started else None,
        last_attempted_at=started[-1] if started else None,
        finished_at=row.finished_at,
        worker_ids=workers,
        errors=_errors(row, attempts, status),
        return_value=_value(row, ledger),
    )


def _from_outbox(id: str, using: str | None) -> Any:
    from penstock.producers.contrib.django.models import OutboxEntry  # once the apps are loaded

    row = OutboxEntry._default_manager.using(using).filter(job_id=id).first()
    if row is None or (task := find_task(row.kind)) is None:
        return None
    envelope = Envelope(row.queue, row.priority, json.loads(row.headers), bytes(row.body))
    return make_result(task, id, payload(envelope.body), enqueued_at=sent_at(envelope))


def sent_at(envelope: Envelope) -> datetime | None:
    """When a task was enqueued; the ledger has this time, too."""
    return parse_time(envelope.headers[HEADER]["sent_at"])


def _value(row: Any, ledger: LedgerConnections) -> Any:
    if row.result_ref is not None:
        from penstock.ledger.queries.results import read_result as read_stored

        return read_stored(ledger.open_storage(), row.result_ref)
    return None if row.result is None else json.loads(row.result)


def _errors(row: Any, attempts: Sequence[Any], status: Any) -> list[Any]:
    errors = [_error(attempt.error, attempt.traceback) for attempt in attempts if attempt.outcome in _FAILED]
    if status == TaskResultStatus.FAILED and not errors:  # it never ran, or was stopped
        errors = [_error(None, row.error or f"the job was {row.state}")]
    return errors


def _error(line: str | None, trace: str | None) -> Any:
    """Error of an attempt. The ledger has the name of its class, and the traceback the module."""
    name = (line or "").removeprefix(_WRAPPED).partition(":")[0].strip()
    path = "penstock.config.errors.JobFailed"  # without a traceback there was no exception, as after a crash
    if trace is not None and name.isidentifier():
        paths = re.findall(rf"^((?:[\w<>]+\.)*{re.escape(name)})(?::|$)", trace, re.MULTILINE)
        path = paths[-1] if paths else name
        path = path if "." in path else f"builtins.{path}"
    return TaskError(exception_class_path=path, traceback=trace or line or "")


def _as_enqueued(task: Any, request: Mapping[str, Any]) -> Any:
    run_after = request.get("run_after")
    changes = {
        "priority": request.get("priority", task.priority),
        "queue_name": request.get("queue_name", task.queue_name),
        "backend": request.get("backend", task.backend),
        "run_after": None if run_after is None else datetime.fromisoformat(run_after),
    }
    changes = {name: value for name, value in changes.items() if value != getattr(task, name)}
    return replace(task, **changes) if changes else task


def local(time: datetime | None) -> datetime | None:
    """Aware time → one as `django.utils.timezone.now()` returns."""
    return time if time is None or settings.USE_TZ else timezone.make_naive(time)
