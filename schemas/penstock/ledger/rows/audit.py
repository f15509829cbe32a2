"""The audit log: who decided what about jobs, dead letters and queues, and when.

An act is written in the transaction that does it, so that there is neither without the other. What a payload holds is
not written: the log outlives the erasure of a person's data.
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
from penstock.schemas.wire.ids import new_id


@dataclass(frozen=True, slots=True)
class Act:
    """One line of the audit log.

    Attributes:
        actor: who, as the command line or a server knows them.
        act: `replay`, `edit` (a replay with an edited payload), `discard`, `retry`, `cancel`, `erase`, …
        subject_kind: what it was done to: `job`, `dead letter`, `queue`, …
        subject: its id or name; None where it was done to many, which `detail` describes.
        count: to how many.
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
    """Enter an act, in the caller's transaction. Returns the id of the line.

    Arguments:
        actor: who does it; not empty.
        act: a verb, such as `erase`.
        subject: id or name of the one thing it is done to; None for many, see `add_subjects`.
        detail: what else there is to know, as JSON values: the selection, the reason. No values of a payload.
    """
    if not actor.strip():
        raise ValueError("an act in the audit log needs its actor")
    line = {
        "id": new_id(),
        "at": datetime.now(UTC),
        "actor": _clean(actor, 255),
        "act": act,
        "subject_kind": subject_kind,
        "subject": None if subject is None else _clean(subject, 255),
        "count": count,
        "detail": _clean(json.dumps(dict(detail or {}), default=_plain)),
    }
    connection.execute(sa.insert(log).values(line))
    return str(line["id"])


def add_subjects(connection: sa.Connection, database: Database, line_id: str, subjects: Sequence[str]) -> None:
    """Enter that an act was done to each of these, so that `find(subject=…)` finds it. They are not counted here."""
    if subjects:
        rows = [{"subject": subject, "audit_id": line_id} for subject in subjects]
        database.execute_many(connection, database.insert_ignore(audit_subjects), rows)


def add_to_count(connection: sa.Connection, line_id: str, more: int) -> None:
    """Count what a further transaction of an act did."""
    connection.execute(sa.update(log).where(log.c.id == line_id).values(count=log.c.count + more))


class Entry:
    """The one line of an act that is done to many in several transactions; it tells of what is committed.

    Arguments:
        one: the act is asked for one thing only, which is then the line's subject.
    """

    def __init__(
        self,
        database: Database,
        *,
        actor: str,
        act: str,
        subject_kind: str = "job",
        detail: Mapping[str, Any] | None = None,
        one: bool = False,
    ) -> None:
        self._database, self._one = database, one
        self._line: dict[str, Any] = {"actor": actor, "act": act, "subject_kind": subject_kind, "detail": detail}
        self.line: str | None = None
        """The line's id; for the caller to set when the transaction that wrote it is committed."""

    def write(self, connection: sa.Connection, ids: Sequence[str]) -> str | None:
        """Enter that it is done to these. Returns the line's id; None while it was done to nothing."""
        if not ids:
            return self.line
        line = self.line
        if line is None:
            line = write(connection, subject=ids[0] if self._one else None, count=len(ids), **self._line)
        else:
            add_to_count(connection, line, len(ids))
        if not self._one:
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
    limit: int = 50,
) -> list[Act]:
    """Acts, the newest first.

    Arguments:
        acts: any of these; none given: all.
        subject: an id or name; acts that were done to many of which it was one are found too.
    """
    return database.read(
        lambda connection: read(
            connection, actor=actor, acts=acts, subject=subject, since=since, until=until, limit=limit
        )
    )


def read(
    connection: sa.Connection,
    *,
    actor: str | None = None,
    acts: Sequence[str] = (),
    subject: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 50,
) -> list[Act]:
    """`find` over a connection of the caller's."""
    select = sa.select(log)
    if actor is not None:
        select = select.where(log.c.actor == actor)
    if acts:
        select = select.where(log.c.act.in_(acts))
    if subject is not None:
        many = sa.select(audit_subjects.c.audit_id).where(audit_subjects.c.subject == subject)
        select = select.where(sa.or_(log.c.subject == subject, log.c.id.in_(many)))
    if since is not None:
        select = select.where(log.c.at >= since)
    if until is not None:
        select = select.where(log.c.at < until)
    select = select.order_by(log.c.at.desc(), log.c.id.desc()).limit(limit)
    return [Act(**{**row._mapping, "detail": json.loads(row.detail)}) for row in connection.execute(select)]


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _clean(text: str, longest: int | None = None) -> str:
    """What any database takes of a person's text."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:longest]
