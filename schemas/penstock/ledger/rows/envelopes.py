"""Rows of the table of jobs, made of messages; and the bodies that waiting rows turn into again."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from penstock.ledger.rows.jobs import ARGS
from penstock.ledger.rows.jobs import Row as Row
from penstock.ledger.rows.jobs import waiting_row as waiting_row
from penstock.schemas.wire.codec import Message, body_of


def message_row(message: Message, started_at: datetime) -> Row:
    """What a job's row takes from its message: the columns that are not null from its first claim on, except state,
    worker, fence and attempt."""
    job = message.job
    embed = message.embed
    return {
        "id": message.id,
        "kind": message.kind.name,
        "queue": message.queue,
        "priority": message.priority,
        "delivery": message.kind.delivery,
        "version": message.kind.version,
        "payload": job.__pydantic_serializer__.to_json(job, by_alias=True).decode(),
        "embed": None if embed is None else json.dumps(embed),
        "key": message.key,
        "tenant": message.tenant,
        "traceparent": message.traceparent,
        "enqueued_at": message.sent_at or started_at,
        "expires_at": message.expires_at,
        "started_at": started_at,
        "failures": 0,
        "crashes": 0,
        "cancel_requested": False,
    }


def body_of_row(row: Any) -> bytes:
    """The body of a waiting row's message. The payload goes as it was kept: its kind may be unknown here."""
    payload: bytes = row.payload.encode()
    if row.embed is None:
        return body_of(payload)
    if ARGS not in row.embed:
        return body_of(payload, row.embed.encode())
    embed = json.loads(row.embed)
    args = json.dumps(embed.pop(ARGS, []))
    return b"[" + args.encode() + b"," + payload + b"," + json.dumps(embed).encode() + b"]"
