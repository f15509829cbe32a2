"""Failure groups: dead letters that died of the same error, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.queries.scope import SCOPED, UNREAD
from penstock.ledger.queries.selection import OPEN, WITH_JOBS, Selection, matching
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs

TREND_HOURS = 24
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters that died of the same error.

    Attributes:
        fingerprint: its name, for `Selection.group`.
        kind, reason, error: of the newest of them.
    """

    fingerprint: str
    count: int
    kind: str | None
    reason: str
    error: str
    first_at: datetime
    last_at: datetime
    newest_id: str


def groups(database: Database, selection: Selection = OPEN, *, limit: int = 50) -> list[Group]:
    """Failure groups of the selected dead letters, the largest first."""

    def find_groups(connection: sa.Connection) -> list[Group]:
        counts = _count_groups(connection, database, selection)[:limit]
        newest = _newest_of(connection, database, selection, counts)
        return [
            Group(
                count.fingerprint, count.size, row.kind, row.reason, row.detail, count.first_at, count.last_at, row.id
            )
            for count in counts
            if (row := newest.get(count.fingerprint)) is not None  # decided about in between
        ]

    return database.read(find_groups)


def trend(database: Database, fingerprints: Sequence[str]) -> dict[str, list[int]]:
    """How many died in each of the last `TREND_HOURS`, the oldest first, by group; decided ones count as well.

    A group in which none died since is left out.
    """
    if not fingerprints:
        return {}
    dead = dead_letters.c
    end = datetime.now(UTC)
    starts = [end - _HOUR * (TREND_HOURS - number) for number in range(TREND_HOURS)]
    hours = [
        sa.func.sum(sa.case((sa.and_(dead.created_at >= start, dead.created_at < start + _HOUR), 1), else_=0))
        for start in starts
    ]
    select = sa.select(dead.fingerprint, *hours).group_by(dead.fingerprint)
    select = select.where(dead.fingerprint.in_(fingerprints), dead.created_at >= starts[0])
    rows = database.read(lambda connection: connection.execute(select).all())
    return {row[0]: [int(number) for number in row[1:]] for row in rows}


@dataclass(frozen=True, slots=True)
class _Count:
    fingerprint: str
    size: int
    first_at: datetime
    last_at: datetime

    def plus(self, other: _Count) -> _Count:
        first_at, last_at = min(self.first_at, other.first_at), max(self.last_at, other.last_at)
        return _Count(self.fingerprint, self.size + other.size, first_at, last_at)


def _count_groups(connection: sa.Connection, database: Database, selection: Selection) -> list[_Count]:
    """The sizes of the groups within the selection's scope, the largest first."""
    dead = dead_letters.c
    measures = (sa.func.count(), sa.func.min(dead.created_at), sa.func.max(dead.created_at))
    select = sa.select(dead.fingerprint, *measures).where(*matching(database, selection))
    if not selection.scope.is_bounded:
        counts = [_Count(*row) for row in connection.execute(select.group_by(dead.fingerprint))]
    else:
        # Compared by their bytes: MariaDB's default collation holds the tenants "A" and "a" for equal.
        owner = (dead.kind, dead.queue, jobs.c.tenant)
        select = select.add_columns(*(sa.func.min(column).label(column.name) for column in owner), UNREAD)
        select = select.select_from(WITH_JOBS).where(*selection.scope.conditions())
        merged: dict[str, _Count] = {}
        for row in connection.execute(select.group_by(dead.fingerprint, *map(database.exact, owner), UNREAD)):
            if selection.scope.includes_dead_letter(row):
                count = _Count(*row[:4])
                merged[count.fingerprint] = (
                    merged[count.fingerprint].plus(count) if count.fingerprint in merged else count
                )
        counts = list(merged.values())
    return sorted(counts, key=lambda count: (-count.size, -count.last_at.timestamp(), count.fingerprint))


def _newest_of(
    connection: sa.Connection, database: Database, selection: Selection, counts: Sequence[_Count]
) -> dict[str, Any]:
    """Fingerprint → the newest dead letter of its group."""
    dead = dead_letters.c
    select = sa.select(dead.fingerprint, dead.id, dead.reason, dead.detail, *SCOPED).select_from(WITH_JOBS)
    select = select.where(*matching(database, selection)).order_by(dead.id)
    newest: dict[str, Any] = {}
    for at in range(0, len(counts), 200):  # SQLite's expressions are at most 1,000 deep
        ends = (
            sa.and_(dead.fingerprint == count.fingerprint, dead.created_at == count.last_at)
            for count in counts[at : at + 200]
        )
        for row in connection.execute(select.where(sa.or_(*ends))):
            if selection.scope.includes_dead_letter(row):
                newest[row.fingerprint] = row
    return newest
