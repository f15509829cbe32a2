"""`Idempotency-Key`: a request that is repeated with the same key is done once, and gets the same answer.

The ids of its jobs are on record before they are sent. Repeating a request that was cut off sends the same jobs again,
which their claims absorb; repeating one that was answered returns that answer.
https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import requests
from penstock.producers.gateway.problems import Problem

KEPT = timedelta(days=1)
"""How long a key is remembered."""
UNDER_WAY = timedelta(seconds=30)
"""How long a request without an answer counts as under way; after that as cut off."""
_DELETE_SECONDS = 600.0
_KEY = re.compile(r'"?([\x20\x21\x23-\x7e]{1,255})"?')


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """The record of a request.

    Attributes:
        job_ids: ids of the jobs that it sends.
        answer: status and body, if it was answered before.
    """

    id: str
    job_ids: list[str]
    answer: tuple[int, bytes] | None = None


class IdempotencyKeys:
    """Remembers requests by their keys."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._delete_at = 0.0

    async def start(self, caller_id: str, key: str, request: Sequence[bytes], job_ids: list[str]) -> KeyedRequest:
        """Record a request, or find its record.

        Arguments:
            key: the header's value.
            request: path, query and body, by which requests with the same key are compared.
            job_ids: new ids; those on record are used instead.

        Raises:
            Problem: (422) the key was used for another request, or is not valid; (409) that request is under way.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            errors = [{"header": "Idempotency-Key", "detail": "1 to 255 visible ASCII characters"}]
            raise Problem(422, "invalid-key", "the Idempotency-Key is not valid", errors=errors)
        request_id = hashlib.sha256(f"{caller_id}\n{match[1]}".encode()).hexdigest()
        fingerprint = hashlib.sha256(b"\n".join(request)).hexdigest()
        return await asyncio.to_thread(self._start, request_id, fingerprint, job_ids)

    async def complete(self, keyed: KeyedRequest, status: int, body: bytes) -> None:
        """Record the answer."""
        change = sa.update(requests).where(requests.c.id == keyed.id).values(status=status, answer=body.decode())
        await asyncio.to_thread(self._database.write, lambda connection: connection.execute(change))

    async def release(self, keyed: KeyedRequest) -> None:
        """Forget a request of which nothing was done; its key may be used again."""
        delete = sa.delete(requests).where(requests.c.id == keyed.id, requests.c.status.is_(None))
        await asyncio.to_thread(self._database.write, lambda connection: connection.execute(delete))

    async def abort(self, keyed: KeyedRequest) -> None:
        """Let the next request with this key, at once, repeat a request of which something may have been done."""
        open_ = sa.and_(requests.c.id == keyed.id, requests.c.status.is_(None))
        change = sa.update(requests).where(open_).values(begun_at=datetime.now(UTC) - UNDER_WAY)
        await asyncio.to_thread(self._database.write, lambda connection: connection.execute(change))

    def _start(self, request_id: str, fingerprint: str, job_ids: list[str]) -> KeyedRequest:
        now = datetime.now(UTC)
        row = {"id": request_id, "fingerprint": fingerprint, "job_ids": json.dumps(job_ids), "begun_at": now}

        def start(connection: sa.Connection) -> KeyedRequest:
            self._delete_old(connection, now)
            if self._database.execute_many(connection, self._database.insert_ignore(requests), [row]):
                return KeyedRequest(request_id, job_ids)
            select = self._database.locked(sa.select(requests).where(requests.c.id == request_id))
            recorded = connection.execute(select).first()
            if recorded is None:  # deleted at this moment
                connection.execute(sa.insert(requests).values(row))
                return KeyedRequest(request_id, job_ids)
            if recorded.fingerprint != fingerprint:
                detail = "this Idempotency-Key was used for another request; use a new one"
                raise Problem(422, "key-used", detail)
            ids: list[str] = json.loads(recorded.job_ids)
            if recorded.status is not None:
                return KeyedRequest(request_id, ids, (recorded.status, recorded.answer.encode()))
            if now - recorded.begun_at < UNDER_WAY:
                detail = "this request is under way already; try again"
                raise Problem(409, "under-way", detail, headers={"Retry-After": "1"})
            connection.execute(sa.update(requests).where(requests.c.id == request_id).values(begun_at=now))
            return KeyedRequest(request_id, ids)

        return self._database.write(start)

    def _delete_old(self, connection: sa.Connection, now: datetime) -> None:
        if time.monotonic() >= self._delete_at:
            self._delete_at = time.monotonic() + _DELETE_SECONDS
            connection.execute(sa.delete(requests).where(requests.c.begun_at < now - KEPT))
