"""API keys of the gateway, in the ledger's database. Only a hash of a key is kept, so a lost key must be replaced.

A key is `psk_`, its id (not secret; lists and logs show it), `_`, and 256 random bits. With so many, a plain SHA-256
reveals nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import ConfigError, PenstockError
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import api_keys
from penstock.ledger.sql.text import is_storable
from penstock.schemas.verbs import Verb, verbs_of

START = "psk_"
SCOPES = ("verbs", "kinds", "queues", "tenants")
"""What bounds a key: lists, of which None is no bound."""
_LONGEST_NAME = 200
_KIND = "API key"
_FORM = re.compile(r"psk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """API key without its secret.

    Attributes:
        verbs: what it may be used to do; None: all.
        kinds, queues: patterns of what it may be used for, such as `invoice.*`; None: all.
        tenants: whose jobs it may send and see; None: those of all tenants, and jobs without one.
        requests_per_second: None: as the settings say.
    """

    id: str
    name: str
    kinds: tuple[str, ...] | None
    queues: tuple[str, ...] | None
    tenants: tuple[str, ...] | None
    requests_per_second: float | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    verbs: tuple[Verb, ...] | None = None

    def holds(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def add(
    database: Database,
    name: str,
    *,
    verbs: Sequence[str] = (),
    kinds: Sequence[str] = (),
    queues: Sequence[str] = (),
    tenants: Sequence[str] = (),
    requests_per_second: float | None = None,
    expires_at: datetime | None = None,
    actor: str | None = None,
) -> tuple[str, ApiKey]:
    """Make a key. Returns its text, which cannot be had again, and its record.

    Arguments:
        name: whose it is, for lists and the audit log.
        verbs, kinds, queues, tenants: see `ApiKey`; none given: all.
        actor: for the audit log; None: a program makes a key for itself, which is not audited.

    Raises:
        ConfigError: the name has more than 200 characters, or some that no database takes; or a verb does not exist.
    """
    if len(name) > _LONGEST_NAME or not is_storable(name):
        raise ConfigError(f"an API key's name must have at most {_LONGEST_NAME} characters, and no NUL")
    try:
        named_verbs = verbs_of(verbs)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    key_id = secrets.token_hex(6)
    text = f"{START}{key_id}_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        key_id,
        name,
        tuple(kinds) or None,
        tuple(queues) or None,
        tuple(tenants) or None,
        requests_per_second,
        datetime.now(UTC),
        expires_at,
        None,
        named_verbs or None,
    )
    row = {field: getattr(key, field) for field in ApiKey.__slots__}
    bounds = {scope: row[scope] for scope in SCOPES if row[scope] is not None}
    for scope in SCOPES:
        row[scope] = None if row[scope] is None else json.dumps(row[scope])
    row["digest"] = _digest(text)

    def insert_and_audit(connection: sa.Connection) -> None:
        connection.execute(sa.insert(api_keys).values(row))
        if actor is not None:
            detail = {"name": name, **bounds, "expires_at": expires_at}
            audit.write(connection, actor=actor, act="add", subject=key_id, subject_kind=_KIND, detail=detail)

    database.write(insert_and_audit)
    return text, key


def find(database: Database, text: str) -> ApiKey | None:
    """The record of this key, whether it still holds or not; None: it is not a key."""
    key_id = id_of(text)
    if key_id is None:
        return None
    select = sa.select(api_keys).where(api_keys.c.id == key_id)
    row = database.read(lambda connection: connection.execute(select).first())
    if row is None or not hmac.compare_digest(row.digest, _digest(text)):
        return None
    return _key(row)


def every(database: Database) -> list[ApiKey]:
    """All keys that were ever made, the newest first."""
    select = sa.select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id)
    return [_key(row) for row in database.read(lambda connection: connection.execute(select).all())]


def revoke(database: Database, key_id: str, *, actor: str | None = None) -> ApiKey:
    """End a key. Gateways notice within seconds. Revoking it again changes nothing.

    Arguments:
        actor: for the audit log; None: not audited.

    Raises:
        PenstockError: no key has this id.
    """

    def revoke_key(connection: sa.Connection) -> Any:
        where = api_keys.c.id == key_id
        unrevoked = sa.update(api_keys).where(where, api_keys.c.revoked_at.is_(None))
        changed = connection.execute(unrevoked.values(revoked_at=datetime.now(UTC))).rowcount
        row = connection.execute(sa.select(api_keys).where(where)).first()
        if changed and actor is not None and row is not None:
            detail = {"name": row.name}
            audit.write(connection, actor=actor, act="revoke", subject=key_id, subject_kind=_KIND, detail=detail)
        return row

    row = database.write(revoke_key)
    if row is None:
        raise PenstockError(f"no API key has the id {key_id!r}; penstock gateway keys list shows all")
    return _key(row)


def id_of(text: str) -> str | None:
    """The id in a key; None: the text does not have the form of a key."""
    match = _FORM.fullmatch(text)
    return None if match is None else match[1]


def _key(row: Any) -> ApiKey:
    fields = {name: getattr(row, name) for name in ApiKey.__slots__}
    for scope in SCOPES:
        fields[scope] = None if fields[scope] is None else tuple(json.loads(fields[scope]))
    if fields["verbs"] is not None:  # a later version may have more of them
        fields["verbs"] = tuple(verb for verb in Verb if verb in fields["verbs"])
    return ApiKey(**fields)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
