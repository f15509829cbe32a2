"""Messages for Celery's monitors, from what happens to jobs:

| here | event | fields, next to those of every event |
| --- | --- | --- |
| received | `task-received` | name, args, kwargs (sensitive fields as `***`), retries, eta, expires, queue |
| started | `task-started` | |
| succeeded | `task-succeeded` | result, runtime |
| retry, snoozed, interrupted | `task-retried` | exception: the error or the reason; traceback |
| dead | `task-failed` | exception, traceback |
| cancelled | `task-revoked` | terminated: true |
| discarded | `task-revoked` | terminated: false, exception: the reason |
"""

from __future__ import annotations

from typing import Any, Literal

from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome
from penstock.schemas.wire.codec import Message

Fields = dict[str, Any]
EventName = Literal["received", "started", "ended", "revoked"]

_TEXT = 1024
_TRACEBACK = 4096


def message_of(event: EventName, subject: Any) -> tuple[str, Fields]:
    """The type of an event's message, and the fields that are its own.

    Arguments:
        subject: the Message received, the Claim started, the AttemptOutcome, or the id of a job revoked while it
            waited.
    """
    match event:
        case "received":
            return "task-received", _received(subject)
        case "started":
            return "task-started", {"uuid": subject.message.id}
        case "revoked":
            return "task-revoked", _revoked(subject, terminated=False)
        case "ended":
            return _ended(subject)


def format_fields(message: Message) -> str:
    """The job's fields as text of at most about 1 KB, with `***` for sensitive ones."""
    return format_values(message.job.redacted())


def format_values(values: Any) -> str:
    """Values, or a dictionary of them, as text of at most about 1 KB."""
    if isinstance(values, dict):
        values = {name: _cut(value) for name, value in values.items()}
    return shorten(repr(values))


def shorten(text: str, limit: int = _TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _cut(value: Any) -> Any:
    """The part of a long value that can be shown."""
    return value[:_TEXT] if isinstance(value, str | list) and len(value) > _TEXT else value


def _received(message: Message) -> Fields:
    return {
        "uuid": message.id,
        "name": message.kind.name,
        "args": "()",
        "kwargs": format_fields(message),
        "root_id": message.id,
        "parent_id": None,
        "retries": message.attempt - 1,
        "eta": None if message.due_at is None else message.due_at.isoformat(),
        "expires": None if message.expires_at is None else message.expires_at.isoformat(),
        "queue": message.queue,
        "exchange": "",
        "routing_key": message.queue,
    }


def _ended(outcome: AttemptOutcome) -> tuple[str, Fields]:
    fields: Fields = {"uuid": outcome.claim.message.id}
    match outcome.name:
        case Outcome.SUCCEEDED:
            message = outcome.claim.message
            fields["result"] = shorten(message.kind.scrub_of_job(message.job)(outcome.result or "None"))
            fields["runtime"] = (outcome.finished_at - outcome.claim.started_at).total_seconds()
            return "task-succeeded", fields
        case Outcome.CANCELLED:
            return "task-revoked", _revoked(fields["uuid"], terminated=True)
        case Outcome.DISCARDED:
            fields |= _revoked(fields["uuid"], terminated=False)
            fields["exception"] = shorten(f"discarded: {outcome.error}" if outcome.error else "discarded")
            return "task-revoked", fields
    fields["exception"] = shorten(_why(outcome))
    fields["traceback"] = None if outcome.traceback is None else outcome.traceback[-_TRACEBACK:]
    fields["retries"] = outcome.claim.attempt - 1
    return "task-failed" if outcome.name is Outcome.DEAD else "task-retried", fields


def _why(outcome: AttemptOutcome) -> str:
    if outcome.name is Outcome.SNOOZED:
        until = "" if outcome.due_at is None else f" until {outcome.due_at.isoformat(timespec='seconds')}"
        return f"snoozed{until}" + (f": {outcome.error}" if outcome.error else "")
    return outcome.detail or outcome.error or str(outcome.name)


def _revoked(job_id: str, *, terminated: bool) -> Fields:
    return {"uuid": job_id, "terminated": terminated, "signum": None, "expired": False}
