"""Selections of dead letters: by id, by their error, and within the bounds of the caller."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from penstock.ledger.queries.scope import EVERYTHING, Scope
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.sql.text import LONGEST_DETAIL, storable

WITH_JOBS = dead_letters.outerjoin(jobs, jobs.c.id == dead_letters.c.id)
PLACED = (dead_letters.c.id, dead_letters.c.created_at)
"""The columns by which dead letters are in order."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Selection of dead letters: those that match all given filters; without any, all that wait for a decision.

    Attributes:
        ids: these, in this order; an empty tuple is none of them.
        decided: None: those that wait for a decision; else those that were `replayed` or `discarded`.
        reason: such as `failed` or `unknown_kind`.
        group: a fingerprint, as `groups` returns it.
        key, tenant: of the job.
        since, until: died at that time or later; before that time.
        error: what the error contains, in upper or lower case.
        scope: the bounds of the caller; what is outside of them does not exist for it.
    """

    ids: tuple[str, ...] | None = None
    decided: Literal["replayed", "discarded"] | None = None
    reason: str | None = None
    kind: str | None = None
    queue: str | None = None
    group: str | None = None
    key: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    scope: Scope = EVERYTHING

    @property
    def filters(self) -> dict[str, Any]:
        """Filters besides the ids."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("ids", "scope")}
        return {name: value for name, value in values.items() if value is not None}


OPEN = Selection()


def matching(database: Database, selection: Selection) -> list[sa.ColumnElement[bool]]:
    """Conditions on dead letters, without those of the selection's scope."""
    dead = dead_letters.c
    conditions: list[sa.ColumnElement[bool]] = []
    if selection.decided is None:
        conditions += [dead.replayed_at.is_(None), dead.discarded_at.is_(None)]
    elif selection.decided == "replayed":
        conditions += [dead.replayed_at.is_not(None)]
    else:
        conditions += [dead.discarded_at.is_not(None), dead.replayed_at.is_(None)]
    if selection.ids is not None:
        conditions.append(database.among(dead.id, selection.ids))
    equal = (
        (dead.reason, selection.reason),
        (dead.kind, selection.kind),
        (dead.queue, selection.queue),
        (dead.fingerprint, selection.group),
    )
    conditions += [column == storable(value) for column, value in equal if value is not None]
    job = [
        column == value
        for column, value in ((jobs.c.key, selection.key), (jobs.c.tenant, selection.tenant))
        if value is not None
    ]
    if job:
        conditions.append(sa.exists().where(jobs.c.id == dead.id, *job).correlate(dead_letters))
    if selection.since is not None:
        conditions.append(dead.created_at >= selection.since)
    if selection.until is not None:
        conditions.append(dead.created_at < selection.until)
    if selection.error is not None:
        text = storable(selection.error)
        # SQLite takes no longer pattern, and nothing of that length is stored.
        too_long = len(text) > LONGEST_DETAIL
        conditions.append(sa.false() if too_long else dead.detail.icontains(text, autoescape=True))
    return conditions


def read_page(
    connection: sa.Connection,
    select: sa.Select[Any],
    selection: Selection,
    limit: int | None,
    *,
    newest_first: bool = False,
    last: Any = None,
) -> list[Any]:
    """Rows of dead letters within the selection's scope, in the order in which they died.

    Arguments:
        select: the columns; among them those of `PLACED` and, for a bounded scope, `SCOPED`.
        last: the row after which to go on.
    """
    order = (dead_letters.c.created_at, dead_letters.c.id)
    select = select.order_by(*(column.desc() for column in order) if newest_first else order).limit(limit)
    rows: list[Any] = []
    while True:
        page = connection.execute(select if last is None else select.where(_comes_after(last, newest_first))).all()
        rows += [row for row in page if selection.scope.includes_dead_letter(row)]
        if limit is None or len(rows) >= limit or len(page) < limit:
            return rows[:limit]
        last = page[-1]


def _comes_after(last: Any, newest_first: bool) -> sa.ColumnElement[bool]:
    died, id = dead_letters.c.created_at, dead_letters.c.id
    if newest_first:
        return sa.or_(died < last.created_at, sa.and_(died == last.created_at, id < last.id))
    return sa.or_(died > last.created_at, sa.and_(died == last.created_at, id > last.id))
