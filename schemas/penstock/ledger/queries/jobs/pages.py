"""Lists of jobs, the newest first, a page at a time."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.queries.jobs.filter import ALL, JobFilter, indexed, parts, source, unindexed
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import WAITING

LISTED = (
    "id",
    "kind",
    "queue",
    "state",
    "attempt",
    "failures",
    "crashes",
    "key",
    "tenant",
    "worker",
    "tags",
    "enqueued_at",
    "due_at",
    "started_at",
    "finished_at",
    "error",
)
"""The columns of a list: no payload and no result, which may be large and hold what no one should see."""

LOOK_AT = 10_000
"""Jobs that a page looks at, at most, for filters that no index answers."""

# While a job is queued, the column holds when it was sent.
_DUE_AT = sa.case((jobs.c.state.in_(WAITING), jobs.c.due_at)).label("due_at")


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list.

    Attributes:
        rows: with the columns of `LISTED`.
        next: cursor of the rest; None: this is the end.
        looked_back_to: set if the page is not full because it has looked at `LOOK_AT` jobs: when the last of them was
            enqueued, or ended. The rest of the list may have more that match.
    """

    rows: list[Any]
    next: str | None = None
    looked_back_to: datetime | None = None


def find_page(database: Database, filter: JobFilter = ALL, *, after: str | None = None, limit: int = 50) -> Page:
    """A page of the jobs that match, the newest first: by when they were enqueued, or ended (`JobFilter.by_end`).

    Arguments:
        after: the `next` of the page before; None: the first page.

    Raises:
        ValueError: `after` is not a cursor.
    """
    at, id = filter.order
    position = (at.label("listed_at"), id.label("listed_id"))
    conditions = indexed(database, filter)
    if after is not None:
        conditions.append(_beyond(at, id, *_read_cursor(after)))
    rest = unindexed(filter)

    def newest(columns: Sequence[Any], *more: Any, limit: int, offset: int = 0) -> sa.Select[Any]:
        select = sa.select(*columns, *position).select_from(source(filter)).where(*conditions, *more)
        pages = [
            select.where(*part).order_by(at.desc(), id.desc()).limit(limit + offset) for part in parts(database, filter)
        ]
        if len(pages) == 1:
            return pages[0].limit(limit).offset(offset)
        whole = sa.union_all(*(sa.select(page.subquery()) for page in pages)).subquery()
        order = (whole.c.listed_at.desc(), whole.c.listed_id.desc())
        return sa.select(whole).order_by(*order).limit(limit).offset(offset)

    def read_page(connection: sa.Connection) -> Page:
        # The last one to look at.
        bound = connection.execute(newest((), limit=1, offset=LOOK_AT - 1)).first() if rest else None
        more = list(rest)
        if bound is not None:
            more += [sa.not_(_beyond(at, id, bound.listed_at, bound.listed_id)), at >= bound.listed_at]
        columns = [_DUE_AT if name == "due_at" else jobs.c[name] for name in LISTED]
        rows = connection.execute(newest(columns, *more, limit=limit + 1)).all()
        kept = list(rows[:limit]) if filter.is_exact else [row for row in rows[:limit] if filter.includes(row)]
        if len(rows) > limit:
            return Page(kept, cursor_of(rows[limit - 1]))
        return Page(kept) if bound is None else Page(kept, cursor_of(bound), bound.listed_at)

    return database.read(read_page)


def each_page(
    database: Database, filter: JobFilter = ALL, *, size: int = 1000, after: str | None = None
) -> Iterator[Page]:
    """All pages of a list, one after the other, from a cursor on."""
    while True:
        page = find_page(database, filter, after=after, limit=size)
        yield page
        if (after := page.next) is None:
            return


def each(database: Database, filter: JobFilter = ALL, *, limit: int) -> Iterator[Any]:
    """The first jobs of a list, in full, as they are read: it looks as far back as it must."""
    rows = (row for page in each_page(database, filter, size=min(limit, 1000)) for row in page.rows)
    return itertools.islice(rows, limit)


def find(database: Database, filter: JobFilter = ALL, *, limit: int = 50) -> list[Any]:
    """`each`, as a list."""
    return list(each(database, filter, limit=limit))


def count(database: Database, filter: JobFilter = ALL, *, most: int = 10_000) -> int:
    """How many jobs match; `most + 1` if they are more. Where no index answers it looks at all jobs: not for pages."""
    matching = sa.select(*_SCOPED).select_from(source(filter)).where(*indexed(database, filter), *unindexed(filter))
    pages = [matching.where(*part).limit(most + 1) for part in parts(database, filter)]
    limited = sa.union_all(*(sa.select(page.subquery()) for page in pages)).limit(most + 1)
    if filter.is_exact:
        number = sa.select(sa.func.count()).select_from(limited.subquery())
        return database.read(lambda connection: connection.execute(number).scalar_one())
    rows = database.read(lambda connection: connection.execute(limited).all())
    return sum(map(filter.includes, rows))


_SCOPED = (jobs.c.id, jobs.c.kind, jobs.c.queue, jobs.c.tenant, jobs.c.key)


def cursor_of(row: Any) -> str:
    """Cursor of the list after this row, which has its place in it; safe in a URL."""
    at: datetime = row.listed_at
    return base64.urlsafe_b64encode(f"{at.astimezone(UTC).isoformat()} {row.listed_id}".encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[datetime, str]:
    try:
        time, _, id = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(" ")
        at = datetime.fromisoformat(time)
        if at.tzinfo is not None and id:
            return at, id
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a cursor of a list; start again without it")


def _beyond(
    at: sa.ColumnElement[datetime], id: sa.ColumnElement[str], last_at: datetime, last_id: str
) -> sa.ColumnElement[bool]:
    """Condition: comes after this place. In this form every database reads the index from there on."""
    return sa.and_(at <= last_at, sa.or_(at < last_at, id < last_id))
