"""Jobs of the ledger in Celery's words, for programs that ask Flower's API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from penstock.ledger.queries import jobs
from penstock.ledger.sql.database import Database
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import State

_STATES = {
    State.SCHEDULED: "PENDING",
    State.QUEUED: "PENDING",
    State.RUNNING: "STARTED",
    State.RETRYING: "RETRY",
    State.SUCCEEDED: "SUCCESS",
    State.DEAD: "FAILURE",
    State.CANCELLED: "REVOKED",
    State.DISCARDED: "REVOKED",
}


def celery_state(state: str) -> str:
    """`PENDING`, `STARTED`, `RETRY`, `SUCCESS`, `FAILURE` or `REVOKED`."""
    return _STATES[State(state)]


def states_of(name: str) -> tuple[State, ...]:
    """The ledger's states that have this name in Celery; `RECEIVED` is that of no job. Raises ValueError."""
    states = tuple(state for state, celery in _STATES.items() if celery == name.upper())
    if not states and name.upper() not in ("RECEIVED", "REJECTED"):
        raise ValueError(f"state {name!r} is not one of {', '.join(sorted(set(_STATES.values())))}")
    return states


def listed(row: Any) -> dict[str, Any]:
    """A row of a list of jobs, with the names of Flower's API; times in seconds since 1970, the runtime in seconds.

    Fields and results are not in lists.
    """
    ended = _seconds(row.finished_at)
    runs = row.started_at is not None and row.finished_at is not None
    return {
        "uuid": row.id,
        "name": row.kind,
        "state": celery_state(row.state),
        "args": "()",
        "kwargs": None,
        "result": None,
        "received": _seconds(row.enqueued_at),
        "sent": _seconds(row.enqueued_at),
        "started": _seconds(row.started_at),
        "succeeded": ended if row.state == State.SUCCEEDED else None,
        "failed": ended if row.state == State.DEAD else None,
        "revoked": ended if row.state in (State.CANCELLED, State.DISCARDED) else None,
        "timestamp": ended or _seconds(row.started_at) or _seconds(row.enqueued_at),
        "runtime": (row.finished_at - row.started_at).total_seconds() if runs else None,
        "worker": row.worker,
        "retries": max(row.attempt - 1, 0),
        "exception": row.error,
        "eta": row.due_at.isoformat() if row.due_at is not None else None,
        "expires": None,
        "exchange": "",
        "routing_key": row.queue,
        "root_id": row.id,
        "parent_id": None,
        "penstock_state": row.state,
    }


def shown(row: Any, attempts: Sequence[Any]) -> dict[str, Any]:
    """A whole job. Sensitive values are `***`, as are all of a kind that the console does not know."""
    payload = json.loads(row.payload) or {}
    result = None if row.result is None else registry.hide_in(row.kind, json.loads(row.result), payload)
    if row.result_ref is not None:
        result = "in the storage"
    return {
        **listed(row),
        "kwargs": repr(registry.redact(row.kind, payload)),
        "result": None if result is None else json.dumps(result, ensure_ascii=False),
        "traceback": attempts[-1].traceback if attempts else None,
    }


def shown_result(database: Database, job_id: str) -> dict[str, Any]:
    """`result` of a job that has ended: its value, or its error, and then `traceback`."""
    row, attempts = jobs.show(database, job_id)
    if row.state == State.SUCCEEDED:
        payload = json.loads(row.payload) or {}
        stored = "in the storage" if row.result_ref is not None else None
        return {"result": stored if row.result is None else registry.hide_in(row.kind, json.loads(row.result), payload)}
    if not State(row.state).final:
        return {}
    return {"result": row.error, "traceback": attempts[-1].traceback if attempts else None}


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
