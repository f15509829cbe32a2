"""Cancelling and rescheduling jobs, by id or by what they are about: their key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.rows import steps
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import cancelled_keys, jobs
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.unique_policy import REPLACEABLE, UNENDED
from penstock.schemas.states import WAITING, State

_BATCH = 500
Seen = tuple[str, str, str, str | None, datetime | None]
"""Id, kind, key, tenant and enqueueing of a job."""


def cancel_key(
    database: Database,
    key: str,
    *,
    kind: str | None = None,
    tenant: str | None = None,
    also: Callable[[sa.Connection, list[str]], object] | None = None,
) -> list[str]:
    """See `Producer.cancel`.

    Arguments:
        also: called in each of its transactions, with the ids of that one; in the first there are none.
    """
    now = datetime.now(UTC)
    kind = kind and _name(kind)
    # Entered first: whoever records a job of this key later looks here afterwards (`cancel_unseen`), so that of a job
    # that is recorded meanwhile either this sees the row or that the entry.
    entry = {"id": _entry_id(key, kind, tenant), "key": key, "kind": kind, "tenant": tenant, "cancelled_at": now}

    def forbid(connection: sa.Connection) -> None:
        connection.execute(database.upsert(cancelled_keys), [entry])
        if also is not None:
            also(connection, [])

    database.write(forbid)
    cancelled: list[str] = []
    last = ""

    def write(connection: sa.Connection) -> tuple[list[str], str]:
        select = _of_key(key, kind, tenant).where(jobs.c.id > last, jobs.c.state.in_(sorted(UNENDED))).limit(_BATCH)
        found = connection.execute(database.locked(select)).all()
        rows = _exactly(found, key, tenant)
        _cancel(connection, database, [row.id for row in rows if row.state != State.RUNNING], now)
        running = [row.id for row in rows if row.state == State.RUNNING]
        if running:
            asked = sa.update(jobs).where(database.among(jobs.c.id, running))
            connection.execute(asked.values(cancel_requested=True))
        ids = [row.id for row in rows]
        if ids and also is not None:
            also(connection, ids)
        return ids, found[-1].id if len(found) == _BATCH else ""

    while True:
        ids, last = database.write(write)
        cancelled += ids
        if not last:
            return cancelled


def cancel_unseen(database: Database, seen: Sequence[Seen], *, claimed: bool = False) -> set[str]:
    """Cancel those of jobs just recorded whose key was cancelled before anybody saw them. Returns their ids.

    Call it after the record is committed, and before one of them is run.

    Arguments:
        seen: at least one.
        claimed: the caller holds their claims, and runs none that this cancels.
    """
    gone = database.read(lambda connection: cancelled_before(connection, database, seen))
    now = datetime.now(UTC)
    if gone:
        states = UNENDED if claimed else REPLACEABLE
        database.write(lambda connection: _cancel(connection, database, sorted(gone), now, states))
    return gone


def cancelled_before(connection: sa.Connection, database: Database, seen: Sequence[Seen]) -> set[str]:
    """Ids of those whose key was cancelled until now, after they were enqueued."""
    select = sa.select(cancelled_keys).where(database.among(cancelled_keys.c.key, sorted({one[2] for one in seen})))
    entries = {row.id: row.cancelled_at for row in connection.execute(select)}
    gone = set()
    for job_id, kind, key, tenant, sent_at in seen if entries else ():
        which = {_entry_id(key, k, t) for k in (None, _name(kind)) for t in (None, tenant)}
        if any(sent_at is not None and sent_at <= entries[one] for one in which & entries.keys()):
            gone.add(job_id)
    return gone


def _cancel(
    connection: sa.Connection,
    database: Database,
    ids: Sequence[str],
    now: datetime,
    states: frozenset[State] = REPLACEABLE,
) -> None:
    if ids:
        mine = sa.and_(database.among(jobs.c.id, ids), jobs.c.state.in_(sorted(states)))
        change = {"state": State.CANCELLED, "finished_at": now, "due_at": None}
        connection.execute(sa.update(jobs).where(mine).values(**change))
        steps.stopped(connection, database, ids)


def reschedule(connection: sa.Connection, database: Database, job_id: str, due_at: datetime) -> None:
    """Move the due time of a job that waits for it in the ledger, in a transaction of the caller's.

    Raises:
        InvalidState: it does not wait for its time, or would expire before; JobNotFound: it is not recorded.
    """
    select = sa.select(jobs.c.id, jobs.c.state, jobs.c.expires_at).where(jobs.c.id == job_id)
    row = connection.execute(database.locked(select)).first()
    if row is None:
        raise JobNotFound(f"job {job_id} is not recorded; one that waits in the broker has no due time")
    _move(connection, row, due_at)


def reschedule_key(
    database: Database, key: str, due_at: datetime, *, kind: str | None = None, tenant: str | None = None
) -> list[str]:
    """See `Producer.reschedule`."""
    return database.write(
        lambda connection: reschedule_all(connection, database, key, due_at, kind=kind, tenant=tenant)
    )


def reschedule_all(
    connection: sa.Connection,
    database: Database,
    key: str,
    due_at: datetime,
    *,
    kind: str | None = None,
    tenant: str | None = None,
) -> list[str]:
    """`reschedule_key` in a transaction of the caller's."""
    select = _of_key(key, kind and _name(kind), tenant).where(jobs.c.state.in_(sorted(UNENDED)))
    rows = _exactly(connection.execute(database.locked(select)).all(), key, tenant)
    if not rows:
        raise JobNotFound(f"no job with the key {key!r} waits or runs")
    waiting = [row for row in rows if row.state in WAITING]
    for row in waiting or rows[:1]:
        _move(connection, row, due_at)
    return [row.id for row in waiting]


def _move(connection: sa.Connection, row: Any, due_at: datetime) -> None:
    if row.state not in WAITING:
        raise InvalidState(f"job {row.id} is {row.state}; only one that waits for its time can be rescheduled")
    if row.expires_at is not None and row.expires_at <= due_at:
        raise InvalidState(f"job {row.id} expires at {row.expires_at.isoformat()}, before {due_at.isoformat()}")
    # The fence rises, so that a copy which a dispatcher may be sending at this moment is refused: by two, as one that
    # does not know the kind sends it with 1 at least.
    change = {"due_at": due_at, "fence": jobs.c.fence + 2}
    connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**change))


def _of_key(key: str, kind: str | None, tenant: str | None) -> sa.Select[Any]:
    select = sa.select(jobs.c.id, jobs.c.kind, jobs.c.state, jobs.c.key, jobs.c.tenant, jobs.c.expires_at)
    select = select.where(jobs.c.key == key).order_by(jobs.c.id)
    if kind is not None:
        known = registry.find(kind)
        select = select.where(jobs.c.kind.in_([kind, *(known.aliases if known else ())]))
    return select if tenant is None else select.where(jobs.c.tenant == tenant)


def _exactly(rows: Sequence[Any], key: str, tenant: str | None) -> list[Any]:
    """MariaDB holds "A" and "a" for equal."""
    return [row for row in rows if row.key == key and tenant in (None, row.tenant)]


def _entry_id(key: str, kind: str | None, tenant: str | None) -> str:
    return hashlib.sha256(json.dumps([key, kind, tenant]).encode()).hexdigest()


def _name(kind: str) -> str:
    """An alias's kind."""
    known = registry.find(kind)
    return kind if known is None else known.name
