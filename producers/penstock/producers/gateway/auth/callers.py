"""Callers of the gateway, and the jobs that each may send and see."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from penstock.ledger import api_keys
from penstock.ledger.api_keys import ApiKey
from penstock.ledger.queries.scope import Scope, matches_any
from penstock.ledger.sql.database import Database
from penstock.producers.gateway.auth.jwt import CHALLENGE, JwtVerifier
from penstock.producers.gateway.problems import Problem
from penstock.schemas.jobs.kind import Kind

CACHE_SECONDS = 5.0
"""How long a gateway uses a key without reading it again, and so how long a revoked key may still be used."""
_MOST_CACHED = 10_000
_SCOPES = ("kinds", "queues", "tenants")


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request.

    Attributes:
        id: does not change from one request to the next.
        name: for the audit log.
        kinds, queues: patterns of those it may send to and see, such as `invoice.*`; None: all.
        tenants: whose jobs it may send and see; None: those of all tenants, and jobs without one.
        requests_per_second: its own limit; None: the one of the settings.
    """

    id: str
    name: str
    kinds: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    tenants: tuple[str, ...] | None = None
    requests_per_second: float | None = None

    def is_allowed(self, kind: str | None, queue: str | None) -> bool:
        return matches_any(kind, self.kinds) and matches_any(queue, self.queues)

    def may_see(self, kind: str | None, queue: str | None, tenant: str | None) -> bool:
        """Whether it may see jobs of this kind, queue and tenant."""
        return self.scope.includes(kind, queue, tenant)

    @property
    def scope(self) -> Scope:
        """The bounds within which it sees jobs and acts on them."""
        return Scope(self.kinds, self.queues, self.tenants)

    def check_use(self, kind: Kind, queue: str | None) -> None:
        """Raises Problem (403) if it may not send this kind to this queue (None: the kind's own)."""
        if not matches_any(kind.name, self.kinds):
            raise Problem(403, "kind-not-allowed", f"this key is not for kind {kind.name}")
        if not matches_any(queue or kind.queue, self.queues):
            raise Problem(403, "queue-not-allowed", f"this key is not for queue {queue or kind.queue}")

    def tenant(self, requested: str | None) -> str | None:
        """On whose behalf a job is sent: the one it asks for, or the only one it may act for.

        Raises:
            Problem: (403) it may not act for that one; (422) it may act for several, and names none.
        """
        if self.tenants is None or requested in self.tenants:
            return requested
        if requested is not None or not self.tenants:
            detail = f"this key is not for tenant {requested}" if requested else "this key is for no tenant's jobs"
            raise Problem(403, "tenant-not-allowed", detail)
        if len(self.tenants) > 1:
            errors = [{"parameter": "tenant", "detail": f"one of {', '.join(self.tenants)} is needed"}]
            raise Problem(422, "invalid-parameters", "this key is for several tenants; name one", errors=errors)
        return self.tenants[0]


class Callers:
    """Authenticates requests by the header `Authorization: Bearer …`, an API key or a JWT."""

    def __init__(self, database: Database, jwt_verifier: JwtVerifier | None) -> None:
        self._database, self._jwts = database, jwt_verifier
        self._claim = "penstock" if jwt_verifier is None else jwt_verifier.claim
        self._cache: OrderedDict[str, tuple[float, Caller | None, ApiKey | None]] = OrderedDict()

    async def authenticate(self, authorization: str | None) -> Caller:
        """Raises Problem: (401) the credential is not valid; (403) a token without our claim."""
        scheme, _, credential = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            detail = "send the header Authorization: Bearer, with an API key" + (" or a token" if self._jwts else "")
            raise Problem(401, "unauthenticated", detail, headers=CHALLENGE)
        if credential.startswith(api_keys.START):
            return await self._authenticate_key(credential)
        if self._jwts is None:
            raise Problem(401, "unauthenticated", "this is not an API key of this gateway", headers=CHALLENGE)
        return self._caller_from_claims(await self._jwts.verify(credential))

    async def _authenticate_key(self, text: str) -> Caller:
        read_at, caller, key = self._cache.get(text, (0.0, None, None))
        if not read_at or time.monotonic() - read_at > CACHE_SECONDS:
            key = await asyncio.to_thread(api_keys.find, self._database, text)
            caller = None if key is None else _caller_authenticate_key(key)
            self._cache[text] = (time.monotonic(), caller, key)
            self._cache.move_to_end(text)
            if len(self._cache) > _MOST_CACHED:
                self._cache.popitem(last=False)
        if caller is None or key is None or not key.holds(datetime.now(UTC)):
            detail = "this API key is unknown, expired or revoked"
            raise Problem(401, "unauthenticated", detail, headers=CHALLENGE)
        return caller

    def _caller_from_claims(self, claims: dict[str, Any]) -> Caller:
        scope = claims.get(self._claim)
        if not isinstance(scope, dict) or not all(_is_names(scope.get(name)) for name in _SCOPES):
            detail = f"the token has no claim {self._claim!r} that lists its kinds, queues or tenants"
            raise Problem(403, "no-scope", detail)
        caller_id = f"jwt:{claims['iss']}:{claims['sub']}"
        kinds, queues, tenants = (None if scope.get(name) is None else tuple(scope[name]) for name in _SCOPES)
        return Caller(caller_id, caller_id, kinds, queues, tenants)


def _caller_authenticate_key(key: ApiKey) -> Caller:
    return Caller(f"key:{key.id}", f"key {key.name}", key.kinds, key.queues, key.tenants, key.requests_per_second)


def _is_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
