"""The row of a dead letter: the one place that spells it out.

There are two sorts. The dead letter of a *job* says why the job in the ledger is dead. An *unread* one keeps the
headers and bytes of a message that never became a job here.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from penstock.ledger.rows.fingerprints import crash_fingerprint, fingerprint
from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.text import LONGEST_DETAIL, storable


def of_job(
    job_id: str,
    kind: str,
    queue: str,
    *,
    reason: str,
    detail: str,
    created_at: datetime,
    error: str | None = None,
    traceback: str | None = None,
) -> Row:
    """Dead letter of a job that is in the ledger.

    Arguments:
        reason: `failed`, `permanent`, `in_doubt`, `crashed`, `delivery_limit` and so on.
        detail: for people: the error, and why it is the end.
        error: `Type: message` of the last attempt, from which the fingerprint is made; None: from the detail.
    """
    grouped = group_of(kind, reason, error if error is not None else detail, traceback)
    return _row(job_id, kind, queue, reason, detail, grouped, created_at)


def group_of(kind: str, reason: str, error: str, traceback: str | None) -> str:
    """Fingerprint of a job that failed, or died, for this reason."""
    return crash_fingerprint(kind) if reason == "crashed" else fingerprint(kind, error, traceback)


def unread(
    dead_letter_id: str,
    headers: dict[str, Any],
    queue: str,
    raw: bytes,
    *,
    reason: str,
    detail: str,
    created_at: datetime,
) -> Row:
    """Dead letter of a message that could not be read.

    Arguments:
        headers: as they came; empty if there were none.
        raw: the body; the whole bytes if there were no headers.
    """
    kind = storable(headers.get("task"), 128)
    row = _row(
        dead_letter_id,
        kind,
        storable(queue, 128) or "",
        reason,
        detail,
        fingerprint(kind, f"{reason}: {detail}"),
        created_at,
    )
    # AMQP tables also hold times and bytes.
    row.update(headers=json.dumps(headers, default=str) if headers else None, raw=raw)
    return row


def _row(
    dead_letter_id: str, kind: str | None, queue: str, reason: str, detail: str, grouped: str, created_at: datetime
) -> Row:
    return {
        "id": dead_letter_id,
        "kind": kind,
        "queue": queue,
        "reason": reason,
        "detail": storable(detail, LONGEST_DETAIL),
        "fingerprint": grouped,
        "headers": None,
        "raw": None,
        "created_at": created_at,
        "replayed_at": None,
        "discarded_at": None,
    }
