"""Callers of the gateway, and the jobs that each may send and see."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from penstock.ledger.members import api_keys
from penstock.ledger.members.api_keys import ApiKey
from penstock.ledger.queries.scope import Scope, matches_any
from penstock.ledger.sql.database import Database
from penstock.producers.gateway.auth.jwt import CHALLENGE, JwtVerifier
from penstock.producers.gateway.problems import Problem
from penstock.schemas.jobs.kind import Kind, registry
from penstock.schemas.verbs import Verb, verbs_of

CACHE_SECONDS = 5.0
"""How long a gateway uses a key without reading it again, and so how long a revoked key may still be used."""
_MOST_CACHED = 10_000
"""Keys, and as many texts that are none. An entry has 32 bytes of a text, however long that is."""
_MOST_SHOWN, _SHOWN = 5, 40
"""Unknown members of a claim that an error names, and their characters."""
_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request.

    Attributes:
        id: does not change from one request to the next.
        name: for the audit log.
        kinds, queues: patterns of those it may send to and see, such as `invoice.*`; None: all.
        tenants: whose jobs it may send and see; None: those of all tenants, and jobs without one.
        requests_per_second: its own limit; None: the one of the settings.
        expires_at: end of its credential; None: it has none.
        verbs: what it may do; None: all.
    """

    id: str
    name: str
    kinds: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    tenants: tuple[str, ...] | None = None
    requests_per_second: float | None = None
    expires_at: datetime | None = None
    verbs: tuple[Verb, ...] | None = None

    def may(self, verb: Verb) -> bool:
        """Whether it has this verb."""
        return self.verbs is None or verb in self.verbs

    def demand(self, verb: Verb) -> None:
        """Raises Problem (403) if it does not have this verb."""
        if not self.may(verb):
            detail = f"this key may not {verb}; its verbs: {', '.join(self.verbs or ()) or 'none'}"
            raise Problem(403, "verb-not-allowed", detail)

    def find_kind(self, name: str) -> Kind:
        """A kind by its name or alias. Where the caller is bound to kinds, it does not learn which others there are.

        Raises:
            Problem: (404) no kind has this name; (403) it may not send it.
        """
        kind = registry.find(name)
        if kind is None and matches_any(name, self.kinds):
            raise Problem(404, "unknown-kind", f"no kind is named {name[:127]!r}; GET /v1/kinds lists those there are")
        if kind is None or not self._may_send(kind):
            detail = f"this key is not for kind {name[:127]!r}"
            if self.kinds is None:
                detail += ": it names no kinds, and the built-in ones must be named"
            raise Problem(403, "kind-not-allowed", detail)
        return kind

    def is_allowed(self, kind: Kind) -> bool:
        """Whether it may send this kind to the kind's own queue. The built-in kinds reach the storage, mail servers and
        databases of the workers, so they must be named, if only by `*`."""
        return self._may_send(kind) and matches_any(kind.queue, self.queues)

    def may_see(self, kind: str | None, queue: str | None, tenant: str | None) -> bool:
        """Whether it may see jobs of this kind, queue and tenant."""
        return self.scope.includes(kind, queue, tenant)

    @property
    def scope(self) -> Scope:
        """The bounds within which it sees jobs and acts on them."""
        return Scope(self.kinds, self.queues, self.tenants)

    def check_queue(self, kind: Kind, queue: str | None = None) -> None:
        """Raises Problem (403) if it may not send to this queue (None: the kind's own, which is not named then)."""
        if not matches_any(queue or kind.queue, self.queues):
            which = "the queue of this kind" if queue is None else f"queue {queue}"
            raise Problem(403, "queue-not-allowed", f"this key is not for {which}")

    def _may_send(self, kind: Kind) -> bool:
        return not is_builtin(kind) if self.kinds is None else matches_any(kind.name, self.kinds)

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
        self._known: OrderedDict[bytes, tuple[float, Caller, ApiKey]] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()  # apart: a flood of them must not push out the known
        self._reading: dict[bytes, asyncio.Task[tuple[Caller, ApiKey] | None]] = {}

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
        pair = await self._find(text) if api_keys.id_of(text) is not None else None
        if pair is None or not pair[1].holds(datetime.now(UTC)):
            detail = "this API key is wrong, expired or revoked"
            raise Problem(401, "unauthenticated", detail, headers=CHALLENGE)
        return pair[0]

    async def _find(self, text: str) -> tuple[Caller, ApiKey] | None:
        digest, now = hashlib.sha256(text.encode()).digest(), time.monotonic()
        if (record := self._known.get(digest)) is not None and now - record[0] <= CACHE_SECONDS:
            return record[1:]
        if now - self._unknown.get(digest, -CACHE_SECONDS) < CACHE_SECONDS:
            return None
        if (reading := self._reading.get(digest)) is None:  # else every request of this moment would read it
            reading = self._reading[digest] = asyncio.get_running_loop().create_task(self._read(digest, text))
            reading.add_done_callback(lambda _: self._reading.pop(digest))
        await asyncio.wait({reading})  # a caller that leaves does not end it for the others
        return reading.result()

    async def _read(self, digest: bytes, text: str) -> tuple[Caller, ApiKey] | None:
        key = await asyncio.to_thread(api_keys.find, self._database, text)
        if key is None:
            self._known.pop(digest, None)
            _keep(self._unknown, digest, time.monotonic())
            return None
        caller = _caller_of_key(key)
        _keep(self._known, digest, (time.monotonic(), caller, key))
        return caller, key

    def close(self) -> None:
        if self._jwts is not None:
            self._jwts.close()

    def _caller_from_claims(self, claims: dict[str, Any]) -> Caller:
        scope = claims.get(self._claim)
        if not isinstance(scope, dict) or not all(_is_names(scope.get(name)) for name in api_keys.SCOPES):
            detail = f"the token has no claim {self._claim!r} that lists its verbs, kinds, queues or tenants"
            raise Problem(403, "no-scope", detail)
        if unknown := sorted(scope.keys() - set(api_keys.SCOPES)):
            names = ", ".join(repr(name[:_SHOWN]) for name in unknown[:_MOST_SHOWN])
            allowed = ", ".join(api_keys.SCOPES)
            detail = f"the token's claim {self._claim!r} has unknown members: {names}; there are {allowed}"
            raise Problem(403, "no-scope", detail)
        bounds: dict[str, Any] = {
            name: None if scope.get(name) is None else tuple(scope[name]) for name in api_keys.SCOPES
        }
        if bounds["verbs"] is not None:
            try:
                bounds["verbs"] = verbs_of(name[:_SHOWN] for name in bounds["verbs"])
            except ValueError as error:
                raise Problem(403, "no-scope", f"the token's claim {self._claim!r} is wrong: {error}") from None
        caller_id = f"jwt:{claims['iss']}:{claims['sub']}"
        return Caller(caller_id, caller_id, expires_at=datetime.fromtimestamp(claims["exp"], UTC), **bounds)


def is_builtin(kind: Kind) -> bool:
    return kind.job.__module__.startswith("penstock.schemas.builtin.")


def _caller_of_key(key: ApiKey) -> Caller:
    bounds = {name: getattr(key, name) for name in (*api_keys.SCOPES, "requests_per_second", "expires_at")}
    return Caller(f"key:{key.id}", f"key {key.name}", **bounds)


def _keep(cache: OrderedDict[bytes, _Entry], digest: bytes, entry: _Entry) -> None:
    cache[digest] = entry
    cache.move_to_end(digest)
    if len(cache) > _MOST_CACHED:
        cache.popitem(last=False)


def _is_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
