"""Audit log: the decisions of people about jobs, dead letters and queues.

An act is recorded in the transaction that does it, so neither exists without the other. Values of a payload are never
recorded, since the log outlives the erasure of a person's data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit as log
from penstock.ledger.sql.tables import audit_subjects
from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.schemas.wire.ids import new_id


@dataclass(frozen=True, slots=True)
class Act:
    """Entry of the audit log.

    Attributes:
        actor: person or program, as the command line or a server knows it.
        act: `replay`, `edit` (a replay with an edited payload), `discard`, `retry`, `cancel`, `erase`, …
        subject_kind: kind of its subjects: `job`, `dead letter`, `queue`, …
        subject: id or name of the one subject; None for many, which `detail` describes.
        count: number of subjects.
        detail: JSON values.
    """

    id: str
    at: datetime
    actor: str
    act: str
    subject_kind: str
    subject: str | None
    count: int
    detail: dict[str, Any]


def write(
    connection: sa.Connection,
    *,
    actor: str,
    act: str,
    subject: str | None = None,
    subject_kind: str = "job",
    count: int = 1,
    detail: Mapping[str, Any] | None = None,
) -> str:
    """Record an act in the caller's transaction. Returns the id of the line.

    Arguments:
        actor: person or program; not empty.
        act: a verb, such as `erase`.
        subject: id or name of the one subject; None for many, see `add_subjects`.
        detail: the selection, the reason and so on, as JSON values. No values of a payload.
    """
    if not actor.strip():
        raise ValueError("an act in the audit log needs its actor")
    line = {
        "id": new_id(),
        "at": datetime.now(UTC),
        "actor": storable(actor, 255),
        "act": act,
        "subject_kind": subject_kind,
        "subject": None if subject is None else storable(subject, 255),
        "count": count,
        "detail": storable(
            json.dumps({name: _capped(value) for name, value in (detail or {}).items()}, default=_plain)
        ),
    }
    connection.execute(sa.insert(log).values(line))
    return str(line["id"])


def add_subjects(connection: sa.Connection, database: Database, line_id: str, subjects: Sequence[str]) -> None:
    """Record subjects of an act, so that `find(subject=…)` finds it. They are not counted here."""
    if subjects:
        rows = [{"subject": subject, "audit_id": line_id} for subject in subjects]
        database.execute_many(connection, database.insert_ignore(audit_subjects), rows)


def add_to_count(connection: sa.Connection, line_id: str, more: int) -> None:
    """Add the subjects of a further transaction of an act to its count."""
    connection.execute(sa.update(log).where(log.c.id == line_id).values(count=log.c.count + more))


def add_detail(connection: sa.Connection, line_id: str, more: Mapping[str, Any]) -> None:
    """Add what is known only after the act to its detail."""
    detail = json.loads(connection.execute(sa.select(log.c.detail).where(log.c.id == line_id)).scalar_one())
    connection.execute(sa.update(log).where(log.c.id == line_id).values(detail=json.dumps({**detail, **more})))


class Entry:
    """Line of an act on many subjects in several transactions. It covers what is committed.

    Arguments:
        single_subject: the act has one subject only, which is then that of the line.
    """

    def __init__(
        self,
        database: Database,
        *,
        actor: str,
        act: str,
        subject_kind: str = "job",
        detail: Mapping[str, Any] | None = None,
        single_subject: bool = False,
    ) -> None:
        self._database, self._single_subject = database, single_subject
        self._line: dict[str, Any] = {"actor": actor, "act": act, "subject_kind": subject_kind, "detail": detail}
        self.line: str | None = None
        """The line's id; for the caller to set when the transaction that wrote it is committed."""

    def write(self, connection: sa.Connection, ids: Sequence[str]) -> str | None:
        """Record these subjects. Returns the line's id; None until there is a subject."""
        if not ids:
            return self.line
        line = self.line
        if line is None:
            line = write(connection, subject=ids[0] if self._single_subject else None, count=len(ids), **self._line)
        else:
            add_to_count(connection, line, len(ids))
        if not self._single_subject:
            add_subjects(connection, self._database, line, ids)
        return line


def find(
    database: Database,
    *,
    actor: str | None = None,
    acts: Sequence[str] = (),
    subject: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Act]:
    """Acts, the newest first.

    Arguments:
        acts: any of these; empty: all.
        subject: an id or name; acts on many subjects are found by each of them.
        after: the id of the last act of the page before; None: the first page.

    Raises:
        ValueError: there is not an act `after`, any more.
    """
    filters: dict[str, Any] = {"actor": actor, "acts": acts, "subject": subject, "since": since, "until": until}
    return database.read(lambda connection: read(connection, after=after, limit=limit, **filters))


def read(
    connection: sa.Connection,
    *,
    actor: str | None = None,
    acts: Sequence[str] = (),
    subject: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Act]:
    """`find` over a connection of the caller's."""
    conditions: list[sa.ColumnElement[bool]] = []
    if actor is not None:
        conditions.append(log.c.actor == actor)
    if subject is not None:
        alone = sa.select(log.c.id).where(log.c.subject == subject)
        among = sa.select(audit_subjects.c.audit_id).where(audit_subjects.c.subject == subject)
        ids = sa.union_all(alone, among).subquery()  # MariaDB would ask a bare union for each row
        conditions.append(log.c.id.in_(sa.select(ids.c.id)))
    if since is not None:
        conditions.append(log.c.at >= since)
    if until is not None:
        conditions.append(log.c.at < until)
    if after is not None:
        last_at = connection.execute(sa.select(log.c.at).where(log.c.id == after)).scalar()
        if last_at is None:
            raise ValueError(f"the list cannot go on after {after!r}; start again without it")
        conditions += [log.c.at <= last_at, sa.or_(log.c.at < last_at, log.c.id < after)]
    newest = sa.select(log).where(*conditions).order_by(log.c.at.desc(), log.c.id.desc()).limit(limit)
    if acts:
        # A page of each: an index has those of one act in order.
        pages = [sa.select(newest.where(log.c.act == act).subquery()) for act in dict.fromkeys(acts)]
        merged = sa.union_all(*pages).subquery()
        newest = sa.select(merged).order_by(merged.c.at.desc(), merged.c.id.desc()).limit(limit)
    return [Act(**{**row._mapping, "detail": json.loads(row.detail)}) for row in connection.execute(newest)]


def _capped(value: Any) -> Any:
    return storable(value, LONGEST_ERROR) if isinstance(value, str) else value


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
