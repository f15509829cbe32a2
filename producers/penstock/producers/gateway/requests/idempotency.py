"""`Idempotency-Key`: a request that is repeated with the same key is done once, and answered alike.

The ids of its jobs are on record before they are sent. Who repeats a request that was cut off sends the same jobs
again, which their claims absorb; who repeats one that was answered gets that answer.
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
"""How long a request that was not answered is taken to be under way, and not cut off."""
_DELETE_SECONDS = 600.0
_KEY = re.compile(r'"?([\x20\x21\x23-\x7e]{1,255})"?')


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """What is on record of a request.

    Attributes:
        job_ids: of the jobs it sends.
        answer: status and body, if it was answered already.
    """

    id: str
    job_ids: list[str]
    answer: tuple[int, bytes] | None = None


class IdempotencyKeys:
    """Remembers requests."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._delete_at = 0.0

    async def start(self, caller_id: str, key: str, asked: Sequence[bytes], job_ids: list[str]) -> KeyedRequest:
        """Enter a request, or find it.

        Arguments:
            key: the header's value.
            asked: what makes the request another one: path, query and body.
            job_ids: new ones; those on record are used instead.

        Raises:
            Problem: (422) the key was used for another request, or is none; (409) that request is under way.
        """
        found = _KEY.fullmatch(key)
        if found is None:
            errors = [{"header": "Idempotency-Key", "detail": "1 to 255 visible ASCII characters"}]
            raise Problem(422, "invalid-key", "the Idempotency-Key is none", errors=errors)
        one = hashlib.sha256(f"{caller_id}\n{found[1]}".encode()).hexdigest()
        fingerprint = hashlib.sha256(b"\n".join(asked)).hexdigest()
        return await asyncio.to_thread(self._start, one, fingerprint, job_ids)

    async def complete(self, keyed: KeyedRequest, status: int, body: bytes) -> None:
        """Enter the answer."""
        change = sa.update(requests).where(requests.c.id == keyed.id).values(status=status, answer=body.decode())
        await asyncio.to_thread(self._database.write, lambda connection: connection.execute(change))

    async def release(self, keyed: KeyedRequest) -> None:
        """Nothing was done; the key may be used again."""
        gone = sa.delete(requests).where(requests.c.id == keyed.id, requests.c.status.is_(None))
        await asyncio.to_thread(self._database.write, lambda connection: connection.execute(gone))

    async def abort(self, keyed: KeyedRequest) -> None:
        """Something may have been done; the next one with this key is to do it again, at once."""
        open_ = sa.and_(requests.c.id == keyed.id, requests.c.status.is_(None))
        change = sa.update(requests).where(open_).values(begun_at=datetime.now(UTC) - UNDER_WAY)
        await asyncio.to_thread(self._database.write, lambda connection: connection.execute(change))

    def _start(self, one: str, fingerprint: str, job_ids: list[str]) -> KeyedRequest:
        now = datetime.now(UTC)
        row = {"id": one, "fingerprint": fingerprint, "job_ids": json.dumps(job_ids), "begun_at": now}

        def write(connection: sa.Connection) -> KeyedRequest:
            self._delete_old(connection, now)
            if self._database.execute_many(connection, self._database.insert_ignore(requests), [row]):
                return KeyedRequest(one, job_ids)
            select = self._database.locked(sa.select(requests).where(requests.c.id == one))
            found = connection.execute(select).first()
            if found is None:  # deleted at this moment
                connection.execute(sa.insert(requests).values(row))
                return KeyedRequest(one, job_ids)
            if found.fingerprint != fingerprint:
                detail = "this Idempotency-Key was used for another request; take a new one"
                raise Problem(422, "key-used", detail)
            ids: list[str] = json.loads(found.job_ids)
            if found.status is not None:
                return KeyedRequest(one, ids, (found.status, found.answer.encode()))
            if now - found.begun_at < UNDER_WAY:
                detail = "this request is under way already; try again"
                raise Problem(409, "under-way", detail, headers={"Retry-After": "1"})
            connection.execute(sa.update(requests).where(requests.c.id == one).values(begun_at=now))
            return KeyedRequest(one, ids)

        return self._database.write(write)

    def _delete_old(self, connection: sa.Connection, now: datetime) -> None:
        if time.monotonic() >= self._delete_at:
            self._delete_at = time.monotonic() + _DELETE_SECONDS
            connection.execute(sa.delete(requests).where(requests.c.begun_at < now - KEPT))
